"""Pictures as data: what a picture of the docs shows; experiments/tables/drawing.py draws it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Mark = Literal["limit", "theory", "predicted", "measured"]


@dataclass(frozen=True)
class Series:
    """One line of a chart, or one dot where it has a single point; series of one label have one colour.

    `points` are (x, y). A limit (a roof, the ridge) is a thin grey line, theory a line without dots; what was predicted
    has hollow dots, what was measured full ones. The label stands beside the last point. `titles` are what each dot
    says when it is pointed at, in the points' order.
    """

    label: str
    points: Sequence[tuple[float, float]]
    mark: Mark = "measured"
    titles: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """A picture: its title, what the axes show with their units, and its series.

    `logarithmic` names the axes ("x", "y", "xy" or "") that are so; their values must be above 0.
    """

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    logarithmic: str = "xy"


@dataclass(frozen=True)
class Bar:
    """One bar: its label, and the parts that stand one behind another in it, (name, value)."""

    label: str
    parts: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Bars:
    """A picture of stacked bars, the first on top: its title, what its axis shows with the unit, and the bars.

    Parts of one name have one colour.
    """

    title: str
    x: str
    bars: tuple[Bar, ...]


Picture = Chart | Bars
