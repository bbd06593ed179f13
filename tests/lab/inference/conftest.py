"""The tiny model, written and loaded once."""

from pathlib import Path

import pytest

from lab.inference.checkpoint import Checkpoint, open_checkpoint
from lab.inference.config import LlamaConfig
from lab.inference.gguf_file import GgufFile
from lab.inference.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.lab.inference import tiny  # skips where the extra `model` is missing

    return tiny.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_path: Path) -> Checkpoint:
    return open_checkpoint(tiny_path)


@pytest.fixture(scope="session")
def tiny_file(tiny_checkpoint: Checkpoint) -> GgufFile:
    assert isinstance(tiny_checkpoint.file, GgufFile)
    return tiny_checkpoint.file


@pytest.fixture(scope="session")
def tiny_config(tiny_checkpoint: Checkpoint) -> LlamaConfig:
    return tiny_checkpoint.config


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_checkpoint: Checkpoint) -> Tokenizer:
    assert isinstance(tiny_checkpoint.tokenizer, Tokenizer)
    return tiny_checkpoint.tokenizer
