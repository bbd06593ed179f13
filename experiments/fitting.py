"""The fit of a model's coefficients to timed launches, and its error on shapes that were held out."""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from math import exp, log, log1p
from statistics import fmean
from typing import Any
from zlib import crc32

import numpy as np
from msgspec import structs
from numpy.typing import NDArray
from scipy.optimize import least_squares

from experiments.launched import Launched, Off, summary
from lab.cards import fits
from lab.cards.fits import Error, Fit
from sim.machine import Machine

FOLDS = 5  # each shape is held out of one of so many fits
LEAST = 12  # launches, and
LEAST_SHAPES = 3  # shapes, that a fit needs
NEAR = 1.5  # times the fastest launch of its problem: beyond it a launch that was predicted there counts
FAR = 0.5  # of a near one, as models rank what may be chosen
ORDINARY = 0.05  # an error of this share counts by its square, a larger one ever less
STAY = 0.02  # what a coefficient's e-fold is worth, in the error of every launch, so that what no time tells stays put
MOST = log(16.0)  # a coefficient moves by at most this factor
STEP = 1e-4  # of the logarithms of coefficients, for derivatives
FITTED = "lab fit to "  # begins the source of a line that a fit made
JUDGED = "; judged by "  # in a line's source: what follows did not make it

Told = Callable[[str], None]


def fitted(
    launches: Sequence[Launched], told: Told, kernels: Collection[str] = (), machine_name: str = ""
) -> list[Fit]:
    """New lines of every model that has enough launches on some card, by some clock; of some kernels' or one card's.

    Models rank what may be chosen: what took much longer than the fastest of its problem, and was predicted to, counts
    little. Of a model, the card and clock with the most launches go first; their line is that of other such cards too,
    but where one card is named.
    """
    lines: list[Fit] = []
    near = _near(launches)
    asked_for = [
        launch
        for launch in launches
        if (not kernels or launch.asked.kernel.name in kernels) and machine_name in ("", launch.asked.machine.name)
    ]
    for model, found in _by_model(asked_for).items():
        cards: dict[tuple[str, str], list[Launched]] = defaultdict(list)
        for launch in found:
            cards[launch.asked.machine.name, launch.asked.clock].append(launch)
        new: list[Fit] = []
        for _, there in sorted(cards.items(), key=lambda item: (-len(item[1]), item[0])):
            if len(there) >= LEAST and len({launch.shape for launch in there}) >= LEAST_SHAPES:
                asked = there[0].asked
                told(f"{model} to {len(there)} launches on the {asked.machine.title} by the clock {asked.clock}")
                with fits.trial(*lines):
                    new.append(_line(model, there, new, near))
        general = [] if machine_name else [structs.replace(line, machine=None, errors={}) for line in new[:1]]
        lines += general + new
    return lines


def _by_model(launches: Sequence[Launched]) -> dict[str, list[Launched]]:
    """The launches by the model that is fitted to them, in the order in which to fit.

    That is the kernel's namesake where its prediction asks for one, else the only one that it asks for. Namesakes
    lean on what kernels share, so they come last.
    """
    own: dict[str, str] = {}
    found: dict[str, list[Launched]] = defaultdict(list)
    for launch in launches:
        name = launch.asked.kernel.name
        if name not in own:
            with fits.trial() as asked:
                launch.predicted_us()
            asked.discard("read")  # the rate of memory is the card's
            own[name] = name if name in asked else min(asked, default="")
        if own[name]:
            found[own[name]].append(launch)
    return dict(sorted(found.items(), key=lambda item: (item[0] in own, item[0])))


def _near(launches: Sequence[Launched]) -> set[Launched]:
    """The launches that took, or are predicted to take, at most NEAR times the fastest of their problem."""
    fastest: dict[Any, float] = {}
    for launch in launches:
        fastest[launch.race] = min(launch.us, fastest.get(launch.race, launch.us))
    return {one for one in launches if min(one.us, one.predicted_us()) <= NEAR * fastest[one.race]}


def _line(model: str, launches: Sequence[Launched], before: Sequence[Fit], near: Collection[Launched]) -> Fit:
    """The line fitted to launches of one card and clock, the near ones above all, with its errors on shapes held out.

    It starts from the best of the line that stands and those fitted just before; what no time tells stays as there.
    Where that, not fitted to this card, predicts as well as the fit does held-out shapes, it is kept, with its errors
    on all launches.
    """
    machine, clock = launches[0].asked.machine, launches[0].asked.clock
    standing = fits.nearest(model, machine, clock)
    known = [_by_clock(line, machine, clock) for line in (standing, *before)]
    start = min(known, key=lambda line: _cost(line, launches))
    seen = start.source.startswith(FITTED) and start.machine == machine.name  # these launches
    start = structs.replace(start, arch=machine.arch, machine=machine.name, errors={})
    whole = _fitted(start, launches, near)
    folds = _folds(launches)
    held: list[Off] = []
    for fold in folds:
        rest = [launch for other in folds if other is not fold for launch in other]
        held += _off(_fitted(whole, rest, near), fold)
    as_before = _off(start, launches)
    commits = ", ".join(sorted({launch.record.commit[:8] for launch in launches}))
    told = f"{len(launches)} launches on the {machine.title}, commits {commits}"
    if not seen and summary(as_before).mean <= summary(held).mean:
        made = start.source.partition(JUDGED)[0]
        return structs.replace(start, source=f"{made}{JUDGED}{told}", errors=_errors(as_before))
    return structs.replace(whole, source=f"{FITTED}{told}", errors=_errors(held))


def _by_clock(line: Fit, machine: Machine, clock: str) -> Fit:
    """The line by another clock, whose launches start as much later as an empty one takes longer."""
    longer = fits.launch_us(machine, clock) - fits.launch_us(machine, line.clock)
    start = {"start_us": max(0.1, line.coefficients["start_us"] + longer)} if "start_us" in line.coefficients else {}
    return structs.replace(line, clock=clock, coefficients=line.coefficients | start)


def _off(line: Fit, launches: Sequence[Launched]) -> list[Off]:
    with fits.trial(line):
        return [Off(launch.predicted_us() / launch.us - 1, launch) for launch in launches]


def _cost(line: Fit, launches: Sequence[Launched]) -> float:
    return fmean(abs(log1p(off.share)) for off in _off(line, launches))


def _errors(found: Sequence[Off]) -> dict[str, Error]:
    """By kernel."""
    kernels: dict[str, list[Off]] = defaultdict(list)
    for off in found:
        kernels[off.launch.asked.kernel.name].append(off)
    return {name: summary(kernels[name]) for name in sorted(kernels)}


def _folds(launches: Sequence[Launched]) -> list[list[Launched]]:
    """The launches in so many parts, all of one shape in the same; which one is drawn by the shape's checksum."""
    ranked = sorted({launch.shape for launch in launches}, key=lambda shape: crc32(repr(shape).encode()))
    place = {shape: at % FOLDS for at, shape in enumerate(ranked)}
    parts: dict[int, list[Launched]] = defaultdict(list)
    for launch in launches:
        parts[place[launch.shape]].append(launch)
    return list(parts.values())


def _fitted(start: Fit, launches: Sequence[Launched], near: Collection[Launched]) -> Fit:
    """The line with coefficients, each the start's times a factor, that make the logarithms of times err least."""
    moved = [name for name, value in start.coefficients.items() if value > 0]
    counts = np.array([1.0 if launch in near else FAR for launch in launches])
    stay = STAY * counts.sum() ** 0.5
    measured = np.log([launch.us for launch in launches])

    def line(factors: NDArray) -> Fit:
        values = {name: start.coefficients[name] * exp(x) for name, x in zip(moved, factors, strict=True)}
        return structs.replace(start, coefficients=start.coefficients | values)

    def residuals(factors: NDArray) -> NDArray:
        with fits.trial(line(factors)):
            predicted = np.log([launch.predicted_us() for launch in launches])
        return np.concatenate([counts * (predicted - measured), stay * factors])

    found = least_squares(
        residuals, np.zeros(len(moved)), bounds=(-MOST, MOST), loss="soft_l1", f_scale=ORDINARY, diff_step=STEP,
        x_scale=0.1, max_nfev=40,
    )  # fmt: skip
    best = line(found.x)
    return structs.replace(best, coefficients={name: float(f"{v:.5g}") for name, v in best.coefficients.items()})
