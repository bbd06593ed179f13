"""The tiny model, written and loaded once."""

from pathlib import Path

import pytest

from lab.inference.config import LlamaConfig, read_config
from lab.inference.gguf_file import GgufFile
from lab.inference.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.lab.inference import tiny  # skips where the extra `model` is missing

    return tiny.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_file(tiny_path: Path) -> GgufFile:
    return GgufFile(tiny_path)


@pytest.fixture(scope="session")
def tiny_config(tiny_file: GgufFile) -> LlamaConfig:
    return read_config(tiny_file)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_file: GgufFile) -> Tokenizer:
    return Tokenizer(tiny_file)
