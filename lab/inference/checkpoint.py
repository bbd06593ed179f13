"""A model on disk, opened: dimensions, tensors, tokenizer; a GGUF file, or a Hugging Face folder of safetensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lab.inference.codec import Codec
from lab.inference.config import LlamaConfig, Tensors
from lab.inference.folder import Folder
from lab.inference.folder_config import read_config as read_folder_config
from lab.inference.folder_tokenizer import FolderTokenizer
from lab.inference.gguf_config import read_config as read_gguf_config
from lab.inference.gguf_file import GgufFile
from lab.inference.tokenizer import Tokenizer
from sim import int4
from sim.folders import unicode


class TensorFile(Tensors, Protocol):
    """Tensors by GGUF names, of which nothing is read before it is asked for."""

    def rows(self, name: str, rows: slice | Sequence[int] = slice(None)) -> NDArray[np.floating]:
        """Rows of a tensor: in the type that floats are stored in, over mapped memory, else dequantised to float32."""

    def groups(self, name: str, rows: slice = slice(None), onto: Callable = np.asarray) -> int4.Groups | None:
        """Rows of a matrix as int4 groups where it is stored so, else None; `onto` places its bytes, on a GPU maybe."""

    def read_bf16(self, name: str, rows: slice, to: NDArray[np.uint16]) -> bool:
        """Fill dense memory with rows of a tensor that is stored in bf16; False where it is stored otherwise."""

    def leave(self, name: str, rows: slice) -> None:
        """Give back the memory of rows that were read: the host need not hold a file that is on a chip."""


@dataclass(frozen=True)
class Checkpoint:
    """A model that is open; nothing of its weights has been read."""

    name: str
    config: LlamaConfig
    file: TensorFile
    tokenizer: Codec


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a GGUF file, or a folder with config.json, tokenizer.json and safetensors.

    Raises InputError, naming the file, for what is missing, foreign, inconsistent or of another architecture.
    """
    name = unicode(path.stem)
    if path.is_dir():
        folder = Folder(path)
        config = read_folder_config(folder)
        return Checkpoint(unicode(path.name), config, folder, FolderTokenizer(folder, config.vocab))
    file = GgufFile(path)
    return Checkpoint(name, read_gguf_config(file), file, Tokenizer(file))


def floats(file: TensorFile, name: str, rows: slice | Sequence[int] = slice(None)) -> NDArray[np.float32]:
    """Rows of a tensor in float32; raises InputError where one is not finite."""
    values = file.rows(name, rows).astype(np.float32)
    if not np.isfinite(values).all():
        file.refuse(f"the tensor {name!r} holds infinities or NaN")
    return values
