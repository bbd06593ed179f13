"""What every problem answers, and the few words in which it does: operands in, operands out, estimates to check by."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from functools import cached_property
from math import prod
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from sim.formats import FORMATS, encode, storage_of

MAX_DIMENSION = 2**31 - 1  # extents are int32 parameters of every kernel
UNIT = 2.0**-24  # rounding unit of float32
SQUARES = 8  # elements of a row whose squares are one sum, where a norm is in two parts
RSQRT_ROUNDINGS = 4  # of a root: rsqrt.approx has 2 ulp (PTX ISA, rsqrt), an ulp being up to two rounding units
EVERY_ROW = slice(None)
DRAWN_AT_ONCE = 2**22  # elements
SPECIALS = ("inf", "nan", "huge", "subnormal")  # values that `draw` can mix in

Arrays = Mapping[str, NDArray]  # by operand, as storage bits


class Operand(NamedTuple):
    """An array of a problem: shape, format of its elements, strides in elements (None where dense and row-major).

    An array that `indexes` holds int32 lengths, starts or page numbers, which decide what is read and computed.
    """

    shape: tuple[int, ...]
    format: str  # of sim.formats, or a NumPy type name such as "int32"
    strides: tuple[int, ...] | None = None
    indexes: bool = False

    @property
    def storage(self) -> np.dtype:
        return storage_of(self.format)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements, gaps between them left out."""
        return prod(self.shape) * self.storage.itemsize


class Estimate(NamedTuple):
    """Values and the errors that they may have."""

    value: NDArray
    error: NDArray

    def rounded(self, times: float) -> "Estimate":
        """After so many roundings to float32."""
        return Estimate(self.value, self.error + times * UNIT * (np.abs(self.value) + self.error))

    def scaled(self, factor: NDArray) -> "Estimate":
        return Estimate(self.value * factor, self.error * np.abs(factor))

    def stored(self, format_name: str) -> "Estimate":
        """After rounding to an output format: bound + u |value| + half of its smallest value."""
        form = FORMATS[format_name]
        return Estimate(
            self.value, self.error + form.unit_roundoff * (np.abs(self.value) + self.error) + form.smallest / 2
        )


class Problem(ABC):
    """What is asked of a kernel: a frozen dataclass of extents, formats and options.

    FORMAT names the field by whose value kernels are listed, EXTENTS the fields that a reference can make smaller,
    OPTIONS those with a usual value, which a kernel takes without saying so. The first axis of every output is its
    rows, of which a reference may be asked for some.
    """

    kind: ClassVar[str]
    FORMAT: ClassVar[str]
    EXTENTS: ClassVar[tuple[str, ...]]
    OPTIONS: ClassVar[tuple[str, ...]]

    @classmethod
    @abstractmethod
    def tiny(cls, form: str, alike: bool = False) -> Self:
        """The smallest problem of a format, options at their usual values; `alike` as in `usual`."""

    @abstractmethod
    def usual(self, alike: bool = False) -> Self:
        """The same extents and format with usual options; activations in that format too where they are `alike`."""

    @property
    @abstractmethod
    def unit(self) -> str:
        """The format whose arithmetic unit does the work."""

    @property
    @abstractmethod
    def inputs(self) -> dict[str, Operand]:
        """Every input array by name, those that say how much of the others is meant among them."""

    @property
    @abstractmethod
    def outputs(self) -> dict[str, Operand]:
        """Every output array by name, the main one first."""

    @property
    @abstractmethod
    def flops(self) -> int:
        """Useful operations."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, special: str = "") -> dict[str, NDArray]:
        """Random inputs as storage bits, with values of that kind mixed in where `special` is one of SPECIALS."""

    @abstractmethod
    def reference(self, arrays: Arrays, rows: slice = EVERY_ROW) -> dict[str, Estimate]:
        """Of the chosen rows of each output: the right values and the error that a right kernel may have."""

    @property
    def rows(self) -> int:
        """Rows of the outputs that are written; there may be room for more."""
        return next(iter(self.outputs.values())).shape[0]

    def written(self, output: str) -> int:  # noqa: ARG002 (of most problems, all outputs alike)
        """Rows of one output that are written."""
        return self.rows

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The inputs that are the model's, not the request's."""
        return ()

    @cached_property
    def read_bytes(self) -> int:
        """Compulsory HBM bytes read: every input once."""
        return sum(operand.nbytes for operand in self.inputs.values())

    @cached_property
    def write_bytes(self) -> int:
        """Compulsory HBM bytes written: every output once."""
        return sum(operand.nbytes for operand in self.outputs.values())

    @property
    def kv_bytes(self) -> int:
        """The part of `read_bytes` that is KV cache."""
        return 0

    @cached_property
    def bytes(self) -> dict[str, int]:
        """Compulsory HBM bytes: each weight, each KV element and each activation once."""
        weights = sum(operand.nbytes for name, operand in self.inputs.items() if name in self.weight_names)
        total = self.read_bytes + self.write_bytes
        activations = total - weights - self.kv_bytes
        return {"weights": weights, "kv": self.kv_bytes, "activations": activations, "total": total}

    @property
    def weight_intensity(self) -> float | None:
        """FLOP per weight byte, the article's estimate; None where there are no weights."""
        weights = self.bytes["weights"]
        return self.flops / weights if weights else None

    @property
    def details(self) -> dict[str, int]:
        """What else `explain` shows."""
        return {}

    def indices(self) -> dict[str, NDArray[np.int32]]:
        """The values of the index arrays."""
        return {}

    def envelope(self) -> Self:
        """The capacities alone, for which launches are made: one compiled kernel serves all lengths within them."""
        return self

    def part(self, flops: float) -> Self:  # noqa: ARG002 (what a class cannot divide it computes whole)
        """As much of the problem as costs so many operations, cut where no output changes."""
        return self

    def tuned_class(self) -> dict[str, Any]:
        """What problems share that one search serves."""
        return self.as_dict()

    def wider_classes(self) -> Iterable[dict[str, Any]]:
        """Tuned classes whose kernels solve this problem too."""
        return ()

    def multiples(self, row_bytes: int) -> dict[str, int]:  # noqa: ARG002 (for kernels of this kind alone)
        """What each extent must be a multiple of, so that every row of every array is one of `row_bytes`."""
        return {}

    def as_dict(self) -> dict[str, Any]:
        """The problem as records and JSON have it: its kind and its fields."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


def require_integers(problem: Any) -> None:
    """Make Python's integers of what other libraries' a problem has; raises InputError for what is none.

    Of fields that are declared as integers, or as several of them.
    """
    for field in fields(problem):
        value = getattr(problem, field.name)
        if field.type is int:
            object.__setattr__(problem, field.name, _integer(field.name, value))
        elif field.type == tuple[int, ...]:
            several = value if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
            object.__setattr__(problem, field.name, tuple(_integer(field.name, one) for one in several))


def _integer(name: str, value: Any) -> int:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    raise InputError(f"{name} takes integers; got {value!r:.40}")


def require_extents(problem: Any, names: tuple[str, ...], least: int = 1) -> None:
    """Raise InputError where one of the named fields is outside `least` to 2^31 - 1, or any integer field is none."""
    require_integers(problem)
    for name in names:
        value = getattr(problem, name)
        if not least <= value <= MAX_DIMENSION:
            raise InputError(f"{name} must be from {least} to {MAX_DIMENSION:,}; {name} = {value:,}")


def require_activations(problem: Any) -> None:
    """Raise InputError where `activations` is no format of plain floats."""
    if problem.activations not in ("fp32", "fp16", "bf16"):
        raise InputError(f"activations are in fp32, fp16 or bf16, not {problem.activations}")


def power_of_two(extent: int) -> int:
    """The extent rounded up to a power of two."""
    return 1 << (extent - 1).bit_length()


def drawn(rng: np.random.Generator, shape: tuple[int, ...], form: str, special: str = "") -> NDArray:
    """N(0, 1) as storage bits, special values among them; threads draw the parts of a large array, each its own."""
    size = prod(shape)
    if size <= DRAWN_AT_ONCE:
        return encode(sprinkle(rng.standard_normal(shape, np.float32), rng, special), form)
    bits = np.empty(size, FORMATS[form].storage)
    parts = [bits[at : at + DRAWN_AT_ONCE] for at in range(0, size, DRAWN_AT_ONCE)]

    def fill(part: NDArray, own: np.random.Generator) -> None:
        part[:] = drawn(own, part.shape, form, special)

    with ThreadPoolExecutor() as pool:
        list(pool.map(fill, parts, rng.spawn(len(parts))))
    return bits.reshape(shape)


def sprinkle(values: NDArray, rng: np.random.Generator, special: str) -> NDArray:
    """Float32 values with one in 64 exchanged for special ones; raises InputError for an unknown word."""
    if not special:
        return values
    if special not in SPECIALS:
        raise InputError(f"special is {', '.join(SPECIALS)}; got {special!r}")
    chosen = rng.random(values.shape) < 1 / 64
    sign = np.where(rng.random(values.shape) < 0.5, -1, 1).astype(np.float32)
    of = {"inf": np.inf, "nan": np.nan, "huge": 2.0**120, "subnormal": 2.0**-140}[special]
    return np.where(chosen, sign * np.float32(of), values).astype(np.float32)
