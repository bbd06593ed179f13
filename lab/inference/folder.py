"""A Hugging Face folder: safetensors files of a model, mapped and read by GGUF names, and its JSON files.

Nothing in it is trusted: the safetensors library holds each header against its file, an index may only name files of
this folder, and pickles are never opened.
"""

import re
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import msgspec
import numpy as np
from numpy.typing import NDArray

from lab.inference.mapped import Mapped
from sim import int4
from sim.errors import InputError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
TYPES = MappingProxyType(
    {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
)
_MOST_BYTES = 2**26  # of a JSON file: a tokenizer.json of 256,000 tokens has a quarter of it
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_LENGTH_BYTES = 8  # of the header's length, with which a safetensors file begins (its format, docs of the library)
_NAMES = MappingProxyType(
    {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    | {"lm_head.weight": "output.weight"}
)
_PARTS = MappingProxyType(
    {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
)
_LAYER = re.compile(r"model\.layers\.(\d{1,4})\.(.+)\.(weight|bias)")
_DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # follow from config.json


class Tensor(NamedTuple):
    """Where one tensor lies: in which file, from which byte on, `type` of TYPES."""

    shape: tuple[int, ...]
    type: str
    file: str
    start: int


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class Folder:
    """An opened and validated folder: `tensors` by GGUF name.

    Raises InputError where weights are missing, pickled, truncated, inconsistent or of other types than TYPES, or the
    `safetensors` package is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, Mapped] = {}
        self.tensors: dict[str, Tensor] = {}
        wanted = self._weight_map()
        for file in sorted(set(wanted.values())) if wanted else [SINGLE]:
            for name, tensor in self._opened(file).items():
                if wanted and wanted.get(name) != file:
                    self.refuse(f"{file} holds the tensor {name!r:.100}, which {INDEX} does not place there")
                self._keep(name, tensor)
        for name in wanted:
            if _translated(name) not in self.tensors and not _DERIVED.fullmatch(name):
                self.refuse(f"{INDEX} places the tensor {name!r:.100} in {wanted[name]!r:.100}, which does not hold it")

    def refuse(self, reason: str) -> NoReturn:
        """Raise the InputError that names this folder."""
        raise InputError(f"{self.path} is not a usable model folder: {reason}")

    def json(self, name: str, kind: Any) -> Any:
        """A JSON file of the folder as a msgspec type; None where there is none, InputError where it does not fit."""
        file = self.path / name
        if not file.is_file():
            return None
        try:
            with file.open("rb") as opened:
                text = opened.read(_MOST_BYTES + 1)
            if len(text) > _MOST_BYTES:
                self.refuse(f"{name} has more than {_MOST_BYTES:,} bytes")
            return msgspec.json.decode(text, type=kind)
        except OSError as error:
            self.refuse(f"{name} cannot be read: {error.strerror}")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.refuse(f"{name} is not what it should be: {error}")

    def rows(self, name: str, rows: slice | Sequence[int] = slice(None)) -> NDArray[np.floating]:
        """Rows of a tensor in the type that it is stored in, over the file's memory."""
        tensor = self.tensors[name]
        dtype = TYPES[tensor.type]
        raw = self._files[tensor.file].data[tensor.start : tensor.start + dtype.itemsize * prod(tensor.shape)]
        values: NDArray[np.floating] = raw.view(dtype).reshape(tensor.shape)[rows]
        return values

    def groups(
        self,
        name: str,  # noqa: ARG002 (floats are all that is read)
        rows: slice = slice(None),  # noqa: ARG002
        onto: Callable = np.asarray,  # noqa: ARG002
    ) -> int4.Groups | None:
        """None: no matrix is in int4 groups."""
        return None

    def read_bf16(self, name: str, rows: slice, to: NDArray[np.uint16]) -> bool:
        """Fill dense memory with rows of a tensor that is stored in bf16; False where it is stored otherwise."""
        tensor = self.tensors[name]
        if tensor.type != "BF16":
            return False
        first, _, _ = rows.indices(tensor.shape[0])
        try:
            self._files[tensor.file].read(tensor.start + first * to.itemsize * prod(tensor.shape[1:]), to)
        except OSError as error:
            self.refuse(f"the tensor {name!r:.100} cannot be read: {error}")
        return True

    def leave(self, name: str, rows: slice) -> None:
        """Give back the memory of rows that were read."""
        tensor = self.tensors[name]
        row = TYPES[tensor.type].itemsize * prod(tensor.shape[1:])
        first, last, _ = rows.indices(tensor.shape[0])
        self._files[tensor.file].leave(tensor.start + first * row, tensor.start + last * row)

    def _weight_map(self) -> dict[str, str]:
        """The file of each tensor by the index, or nothing where one file holds all."""
        index: _Index | None = self.json(INDEX, _Index)
        if index is None:
            if not (self.path / SINGLE).is_file():
                pickled = sorted(p.name for p in self.path.iterdir() if p.suffix in _PICKLES)
                if pickled:
                    self.refuse(f"{pickled[0]} is a pickle, a program that loading would run; convert it to {SINGLE}")
                self.refuse(f"it has neither {SINGLE} nor {INDEX}")
            return {}
        for file in set(index.weight_map.values()):
            if Path(file).name != file or not file.endswith(".safetensors"):
                self.refuse(f"{INDEX} names {file!r:.100}; only safetensors files of the folder itself are read")
        if not index.weight_map:
            self.refuse(f"{INDEX} names no tensors")
        return index.weight_map

    def _opened(self, file: str) -> dict[str, Tensor]:
        """The tensors of one file, which is mapped; the library refuses a header that does not fit its file."""
        path, found = self.path / file, {}
        try:
            with _safetensors().safe_open(path, "np") as opened:
                for name in opened.offset_keys():
                    of = opened.get_slice(name)
                    found[name] = tuple(of.get_shape()), of.get_dtype()
            mapped = Mapped(path)
        except (OSError, ValueError, _safetensors().SafetensorError) as error:
            self.refuse(f"{file} cannot be read: {error}")
        data = mapped.data
        at = _LENGTH_BYTES + int(data[:_LENGTH_BYTES].view("<u8")[0])
        placed = {}
        for name, (shape, kind) in found.items():  # one behind the other, without gaps: else the library had refused
            if kind not in TYPES:
                self.refuse(f"the tensor {name!r:.100} is of type {kind}; supported: {', '.join(TYPES)}")
            placed[name] = Tensor(shape, kind, file, at)
            at += TYPES[kind].itemsize * prod(shape)
        if at != len(data):
            self.refuse(f"{file} has {len(data):,} B; its header accounts for {at:,}")
        self._files[file] = mapped
        return placed

    def _keep(self, name: str, tensor: Tensor) -> None:
        if _DERIVED.fullmatch(name):
            return
        translated = _translated(name)
        if translated in self.tensors:
            self.refuse(f"the tensor {name!r:.100} occurs twice")
        self.tensors[translated] = tensor


def _translated(name: str) -> str:
    """A tensor's GGUF name; that of a tensor that has none stays, for the dimensions to refuse."""
    layer = _LAYER.fullmatch(name)
    if layer and layer[2] in _PARTS:
        return f"blk.{int(layer[1])}.{_PARTS[layer[2]]}.{layer[3]}"
    return _NAMES.get(name, name)


def _safetensors() -> Any:
    try:
        import safetensors  # an extra: only folders need it
    except ImportError:
        raise InputError("a model folder needs the package safetensors: pip install 'kernel-lab[model]'") from None
    return safetensors
