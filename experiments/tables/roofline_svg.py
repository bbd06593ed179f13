"""A log-log roofline as SVG text: the roofs of one chip, every kernel a dot. Written by hand so that the same records
always give the same bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from xml.sax.saxutils import escape

from sim.machine import Machine

WIDTH, HEIGHT = 860, 520
LEFT, RIGHT, TOP, BOTTOM = 70, 220, 40, 50  # margins; the legend stands at the right
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#f0e442")  # Okabe and Ito
TERA = 1e12


@dataclass(frozen=True)
class Dot:
    """A kernel on a problem: FLOP per compulsory byte and FLOP/s reached; filled where measured, else hollow."""

    kernel: str
    label: str
    intensity: float
    flops_per_s: float
    measured: bool


def roofline_svg(machine: Machine, dots: Sequence[Dot], read_rate: float | None) -> str:
    """The chart; `read_rate` (B/s) draws the bandwidth measured on such a card below the data sheet's."""
    units = {peak: name for name, peak in reversed(list(machine.peaks.items()))}  # one line for formats of equal rate
    x = _Axis(_decades([0.5, 4096, *(d.intensity for d in dots)]), LEFT, WIDTH - RIGHT)
    lowest = min([machine.hbm_bandwidth / 2, *(d.flops_per_s for d in dots)])
    y = _Axis(_decades([lowest / TERA, max(units) / TERA]), HEIGHT - BOTTOM, TOP)
    parts = [*_grid(x, y), f'<text x="{LEFT}" y="22" font-size="15">{escape(machine.title)}: roofs and kernels</text>']
    for peak, name in units.items():
        ridge = peak / machine.hbm_bandwidth
        parts.append(_line(x, y, (ridge, peak), (x.high, peak), "#333"))
        parts.append(_text(x.at(x.high) - 4, y.at(peak / TERA) - 5, f"{name} {peak / TERA:,.4g} TFLOP/s", "end"))
    top = max(units)
    for rate, style in ((machine.hbm_bandwidth, "#333"), (read_rate, "#333;stroke-dasharray:5 4")):
        if rate:
            start = max(x.low, y.low * TERA / rate)
            parts.append(_line(x, y, (start, start * rate), (top / rate, top), style))
    start = max(x.low, y.low * TERA / machine.hbm_bandwidth)
    label = _bandwidth(machine, read_rate)
    parts.append(_text(x.at(start) + 22, y.at(start * machine.hbm_bandwidth / TERA) - 8, label))
    names = sorted({d.kernel for d in dots})
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    for dot in sorted(dots, key=lambda d: (d.kernel, d.intensity, d.flops_per_s, d.measured)):
        fill = colour[dot.kernel] if dot.measured else "white"
        parts.append(
            f'<circle cx="{x.at(dot.intensity):.1f}" cy="{y.at(dot.flops_per_s / TERA):.1f}" r="5" fill="{fill}" '
            f'stroke="{colour[dot.kernel]}" stroke-width="2"><title>{escape(dot.kernel)} {escape(dot.label)}: '
            f"{dot.flops_per_s / TERA:,.4g} TFLOP/s</title></circle>"
        )
    for i, name in enumerate(names):
        at = TOP + 20 + 20 * i
        parts.append(f'<circle cx="{WIDTH - RIGHT + 20}" cy="{at - 4}" r="5" fill="{colour[name]}"/>')
        parts.append(_text(WIDTH - RIGHT + 32, at, name))
    parts.append(_text(WIDTH - RIGHT + 14, TOP + 30 + 20 * len(names), "filled: measured, hollow: predicted"))
    style = 'font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style}>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""])


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis over whole decades between two pixel positions."""

    decades: tuple[int, int]
    start: float
    end: float

    @property
    def low(self) -> float:
        return 10.0 ** self.decades[0]

    @property
    def high(self) -> float:
        return 10.0 ** self.decades[1]

    def at(self, value: float) -> float:
        first, last = self.decades
        return self.start + (log10(value) - first) / (last - first) * (self.end - self.start)


def _decades(values: Sequence[float]) -> tuple[int, int]:
    return floor(log10(min(values))), ceil(log10(max(values)))


def _grid(x: _Axis, y: _Axis) -> list[str]:
    parts = []
    for power in range(x.decades[0], x.decades[1] + 1):
        at = x.at(10.0**power)
        parts.append(f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(_text(at, HEIGHT - BOTTOM + 16, f"{10.0**power:,g}", "middle"))
    for power in range(y.decades[0], y.decades[1] + 1):
        at = y.at(10.0**power)
        parts.append(f'<line x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, at + 4, f"{10.0**power:,g}", "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "FLOP per byte of HBM", "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">TFLOP/s</text>')
    return parts


def _line(x: _Axis, y: _Axis, start: tuple[float, float], end: tuple[float, float], style: str) -> str:
    (x1, y1), (x2, y2) = ((x.at(a), y.at(b / TERA)) for a, b in (start, end))
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="stroke:{style}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _bandwidth(machine: Machine, read_rate: float | None) -> str:
    sheet = f"HBM {machine.hbm_bandwidth / TERA:.4g} TB/s"
    return f"{sheet} (dashed: {read_rate / TERA:.3g} read)" if read_rate else sheet
