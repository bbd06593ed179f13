"""Draws pictures as SVG by matplotlib, the same bytes each time; each file says of what it was drawn."""

import io
import re
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from experiments.chart import Bars, Chart, Picture, Series
from sim.errors import InputError

SIZE = (8.6, 4.8)  # inches
FRAME = {"left": 0.09, "right": 0.72, "bottom": 0.12, "top": 0.91}  # labels of the last points stand at the right
FONT = 9  # points
LETTER, LINE = 0.56 * FONT, 1.25 * FONT  # points; about what a letter and a line take, so that no font is asked
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9")  # Okabe and Ito
GREY = "#767676"
SHADES = (*COLOURS, GREY)  # of the parts of bars
BARS_LEFT, BAR_HEIGHT = 0.05, 0.6  # of the picture, beside the labels; of the distance between bars
FEW_DECADES = 1000  # largest over smallest value up to which 2 and 5 are written too
DOTS = "os^Dv"  # one for each round through the colours
LOOKS: dict[str, dict[str, Any]] = {
    "limit": {"linestyle": "-", "linewidth": 1.0},
    "theory": {"linestyle": "-", "linewidth": 1.3},
    "predicted": {"linestyle": "--", "linewidth": 1.0, "markerfacecolor": "white", "markersize": 9},
    "measured": {"linestyle": "-", "linewidth": 1.6, "markersize": 6},
}
MEANING = {"theory": "line: theory", "predicted": "hollow: predicted", "measured": "full: measured"}


def digest(picture: Picture) -> str:
    """What a picture was drawn of and by: its data to six digits and this file, so that nothing else is compared."""
    if isinstance(picture, Bars):
        bars = [(bar.label, [(name, f"{value:.6g}") for name, value in bar.parts]) for bar in picture.bars]
        said = repr((picture.title, picture.x, bars))
    else:
        series = [(s.label, s.mark, [(f"{x:.6g}", f"{y:.6g}") for x, y in s.points], s.titles) for s in picture.series]
        said = repr((picture.title, picture.x, picture.y, picture.logarithmic, series))
    return "sha256:" + sha256(said.encode() + Path(__file__).read_bytes()).hexdigest()


def draw(picture: Picture) -> str:
    """The picture as SVG text; raises InputError where matplotlib is not installed."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("pictures need the package matplotlib: pip install 'kernel-lab[pictures]'") from None
    settings = {"svg.hashsalt": "lab", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": FONT}
    with rc_context(settings):
        figure = Figure(figsize=SIZE)
        axes = figure.add_subplot()
        axes.set(title=picture.title, xlabel=picture.x)
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        titles = _bars(axes, picture) if isinstance(picture, Bars) else _lines(axes, picture)
        file = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Title": picture.title, "Identifier": digest(picture)}
        figure.savefig(file, format="svg", metadata=metadata)
    text = _titled(file.getvalue(), "path" if isinstance(picture, Bars) else "use", titles)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _lines(axes: Any, chart: Chart) -> list[Sequence[str]]:
    """Draw the series; the titles of each one's dots."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = axes.get_figure()
    figure.subplots_adjust(**FRAME)
    axes.set(ylabel=chart.y)
    for name in chart.logarithmic:
        axes.set(**{f"{name}scale": "log"})
        axis, values = (
            getattr(axes, f"{name}axis"),
            [point["xy".index(name)] for s in chart.series for point in s.points],
        )
        few = max(values) < FEW_DECADES * min(values)
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_formatter(NullFormatter())
    labels = list(dict.fromkeys(s.label for s in chart.series if s.mark != "limit"))
    for i, series in enumerate(chart.series):
        look = {**LOOKS[series.mark], **_look(series, labels)}
        axes.plot(*zip(*series.points, strict=True), clip_on=False, gid=_gid(i), **look)
    _label(axes, chart, labels)
    marks = ", ".join(text for mark, text in MEANING.items() if any(s.mark == mark for s in chart.series))
    figure.text(0.99, 0.02, marks, ha="right", color=GREY)
    return [series.titles for series in chart.series]


def _bars(axes: Any, picture: Bars) -> list[Sequence[str]]:
    """Draw the bars, first on top, with a legend of their parts; the title of each part."""
    labels = max(len(bar.label) for bar in picture.bars) * LETTER / (72 * SIZE[0])
    axes.get_figure().subplots_adjust(**(FRAME | {"left": BARS_LEFT + labels}))
    names = list(dict.fromkeys(name for bar in picture.bars for name, _ in bar.parts))
    titles: list[Sequence[str]] = []
    shown = set()
    for y, bar in enumerate(picture.bars):
        left = 0.0
        for name, value in bar.parts:
            look = {"color": SHADES[names.index(name) % len(SHADES)], "label": "" if name in shown else name}
            axes.barh(y, value, left=left, height=BAR_HEIGHT, **look)[0].set_gid(_gid(len(titles)))
            titles.append([f"{bar.label}, {name}: {value:,.4g}"])
            shown.add(name)
            left += value
        axes.annotate(f"{left:,.4g}", (left, y), (3, 0), textcoords="offset points", va="center", color=GREY)
    axes.set_yticks(range(len(picture.bars)), [bar.label for bar in picture.bars])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.grid(visible=False, axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1.06, 0.5), frameon=False)
    return titles


def _gid(i: int) -> str:
    return f"series-{i}"


def _titled(text: str, tag: str, titles: Sequence[Sequence[str]]) -> str:
    """The SVG with the titles of its dots or parts, elements of this tag, which matplotlib cannot write."""
    for i, said in enumerate(titles):
        before, start, part = text.partition(f'<g id="{_gid(i)}">')
        for title in said:
            part = re.sub(rf"(<{tag} [^>]*)/>", rf"\1><title>{_literal(title)}</title></{tag}>", part, count=1)
        text = before + start + part
    return text


def _literal(title: str) -> str:
    """A title as the replacement of a pattern."""
    return escape(title).replace("\\", r"\\")


def _look(series: Series, labels: list[str]) -> dict[str, Any]:
    """Colour and dot of a series: one for each label; limits are grey, and neither they nor theory have dots."""
    if series.mark == "limit":
        return {"color": GREY}
    turn, colour = divmod(labels.index(series.label), len(COLOURS))
    dot = "" if series.mark == "theory" else DOTS[turn % len(DOTS)]
    return {"color": COLOURS[colour], "marker": dot}


def _label(axes: Any, chart: Chart, labels: list[str]) -> None:
    """Each label once, right of the last point of its last series; where two would overlap the lower one goes down."""
    axes.autoscale_view()  # else limits follow only when drawn
    scale = axes.get_figure().dpi / 72  # pixels a point
    last = {series.label: series for series in chart.series if series.label}
    at = {label: axes.transData.transform(series.points[-1]) / scale for label, series in last.items()}
    placed: dict[str, tuple[float, float]] = {}
    for label in sorted(at, key=lambda name: -at[name][1]):
        x, y = at[label][0] + 7, at[label][1]
        for other, (left, height) in sorted(placed.items(), key=lambda item: -item[1][1]):
            beside = x < left + LETTER * len(other) and left < x + LETTER * len(label)
            if beside and abs(y - height) < LINE:
                y = height - LINE
        placed[label] = x, y
    for label, (x, y) in placed.items():
        series = last[label]
        moved = abs(y - at[label][1]) > LINE / 2
        leader = {"arrowstyle": "-", "linewidth": 0.5, "color": GREY, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 4}
        axes.annotate(
            label,
            xy=series.points[-1],
            xytext=(x + (6 if moved else 0) - at[label][0], y - at[label][1] - FONT / 3),
            textcoords="offset points",
            color=_look(series, labels)["color"],
            arrowprops=leader if moved else None,
            annotation_clip=False,
        )
