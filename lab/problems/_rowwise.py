"""What the problems whose rows are computed each by itself share: m rows of n elements in one format."""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from lab.problems.protocol import Problem, power_of_two, require_activations, require_extents
from sim.formats import FORMATS


@dataclass(frozen=True)
class RowWise(Problem):
    """m rows of n elements in the format `activations`, computed in float32.

    Raises InputError for extents outside 1 to 2^31 - 1 and formats other than fp32, fp16 and bf16.
    """

    FORMAT: ClassVar[str] = "activations"
    EXTENTS: ClassVar[tuple[str, ...]] = ("m", "n")
    OPTIONS: ClassVar[tuple[str, ...]] = ()

    m: int
    n: int
    activations: str = "bf16"

    def __post_init__(self) -> None:
        require_extents(self, self.EXTENTS)
        require_activations(self)

    @classmethod
    def tiny(cls, form: str, alike: bool = False) -> Self:  # noqa: ARG003 (there is one format)
        return cls(1, 1, form)

    def usual(self, alike: bool = False) -> Self:  # noqa: ARG002
        return type(self)(self.m, self.n, self.activations)

    @property
    def unit(self) -> str:
        return "fp32"

    def part(self, flops: float) -> Self:
        """Fewer rows."""
        return replace(self, m=max(1, min(self.m, int(flops // (self.flops / self.m)))))

    def tuned_class(self) -> dict[str, Any]:
        """m rounded up to a power of two."""
        return {**self.as_dict(), "m": power_of_two(self.m)}

    def multiples(self, row_bytes: int) -> dict[str, int]:
        return {"n": 8 * row_bytes // FORMATS[self.activations].bits}

    def as_dict(self) -> dict[str, Any]:
        """Extents, and every other field that is not as usual."""
        names = [f.name for f in fields(self) if f.name in self.EXTENTS or getattr(self, f.name) != f.default]
        return {"kind": self.kind, **{name: getattr(self, name) for name in names}}
