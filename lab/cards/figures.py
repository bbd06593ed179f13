"""Calibration: the rates and times of one card as measured, each with the run that measured it."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import isfinite, log

import msgspec
from msgspec import field

from sim.errors import InputError

SCHEMA = 1
CLOCKS = ("cold", "graph", "chain")  # chain: a launch among dependent launches of a graph, which is what a step pays
LOADS = ("idle", "read", "mma")  # under which the SM clock was read: no work, reads of HBM, a large GEMM


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """Where figures came from; `time` is UTC, ISO 8601."""

    time: str
    commit: str
    dirty: bool
    command: str
    card: str
    driver: str


class Measured(msgspec.Struct, frozen=True):
    """One figure and the id of its run."""

    value: float
    run: str


class Read(msgspec.Struct, frozen=True):
    """The fastest read found of `nbytes` and how it was launched: probe, CTAs x threads."""

    nbytes: int
    us: float
    launch_shape: str
    run: str

    @property
    def bytes_per_s(self) -> float:
        return self.nbytes / self.us * 1e6


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured on a card; null is what was not. Rates are bytes per second, times microseconds, clocks MHz.

    `launch_us` is an empty kernel by clock; `reads` and `l2_reads` (data that stay in L2) are in ascending size;
    `copy_bytes_per_s` counts reads and writes; `clusters_at_once` is by the CTAs of a cluster, one CTA an SM;
    `peer_bytes_per_s` is a copy to another GPU of the host, one way.
    """

    schema: int = SCHEMA
    machine: str
    card: str | None = None
    runs: dict[str, Run] = {}
    launch_us: dict[str, Measured | None] = field(default_factory=lambda: dict.fromkeys(CLOCKS))
    reads: dict[str, tuple[Read, ...] | None] = field(default_factory=lambda: dict.fromkeys(CLOCKS))
    copy_bytes_per_s: Measured | None = None
    l2_bytes: Measured | None = None
    l2_reads: tuple[Read, ...] | None = None
    sm_clock_mhz: dict[str, Measured | None] = field(default_factory=lambda: dict.fromkeys(LOADS))
    clusters_at_once: dict[str, Measured] | None = None
    peer_bytes_per_s: Measured | None = None

    def launch(self, clock: str) -> float | None:
        """Microseconds of an empty launch by a clock; None where not measured."""
        figure = self.launch_us.get(_known(clock))
        return figure.value if figure else None

    def read_us(self, nbytes: float, clock: str) -> float | None:
        """Microseconds of the fastest read of so many bytes by a clock; None where no read was measured.

        Between measured sizes the rate is interpolated linearly in the logarithm of the size. Above them the largest
        one's rate holds; below them what a read takes beyond an empty launch shrinks with the size.
        """
        reads = self.reads.get(_known(clock))
        if not reads:
            return None
        least = reads[0]
        if nbytes <= least.nbytes:
            launch = min(self.launch(clock) or 0.0, least.us)
            return launch + (least.us - launch) * nbytes / least.nbytes
        return nbytes / _interpolated(reads, nbytes) * 1e6

    def read_rate(self, nbytes: float, clock: str) -> float | None:
        """Bytes per second of that read; None where no read was measured."""
        us = self.read_us(nbytes, clock)
        return None if us is None or nbytes <= 0 else nbytes / us * 1e6

    def launch_shape(self, nbytes: float, clock: str) -> str | None:
        """How the fastest read of the measured size nearest to `nbytes`, by its logarithm, was launched."""
        reads = self.reads.get(_known(clock))
        return min(reads, key=lambda read: abs(log(read.nbytes / nbytes))).launch_shape if reads else None

    @property
    def l2_rate(self) -> float | None:
        """Bytes per second from L2 to all SMs at best; None where not measured."""
        return max((read.bytes_per_s for read in self.l2_reads), default=None) if self.l2_reads else None

    @property
    def not_measured(self) -> tuple[str, ...]:
        """The names of all figures that are null."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        groups = {name: value for name, value in fields.items() if name in ("launch_us", "reads", "sm_clock_mhz")}
        inside = (f"{group}.{name}" for group, figures in groups.items() for name, v in figures.items() if v is None)
        return (*(name for name, value in fields.items() if value is None), *inside)

    def require_sound(self, where: str) -> None:
        """Raise InputError, naming the file `where`, for figures that cannot be or that name no run."""
        if self.schema != SCHEMA:
            raise InputError(f"{where} has schema {self.schema}; this version of the lab reads {SCHEMA}")
        for group, names in (("launch_us", CLOCKS), ("reads", CLOCKS), ("sm_clock_mhz", LOADS)):
            if set(getattr(self, group)) != set(names):
                raise InputError(f"{where}: {group} must name {', '.join(names)}, null where not measured")
        for name, value, run in self._figures():
            if not (isfinite(value) and value > 0):
                raise InputError(f"{where}: {name} must be positive; it is {value}")
            if run not in self.runs:
                raise InputError(f"{where}: {name} names run {run!r}, which is not among its runs")
        for reads in (*self.reads.values(), self.l2_reads):
            if any(a.nbytes >= b.nbytes for a, b in pairwise(reads or ())):
                raise InputError(f"{where}: reads must be in ascending size, each size once")

    def _figures(self) -> Iterator[tuple[str, float, str]]:
        """(name, value, run) of everything measured."""
        single = {name: getattr(self, name) for name in ("copy_bytes_per_s", "l2_bytes", "peer_bytes_per_s")}
        groups = {"launch_us": self.launch_us, "sm_clock_mhz": self.sm_clock_mhz}
        groups |= {"clusters_at_once": dict(self.clusters_at_once or {})}
        named = {f"{group}.{name}": figure for group, figures in groups.items() for name, figure in figures.items()}
        for name, figure in (single | named).items():
            if figure is not None:
                yield name, figure.value, figure.run
        for name, reads in {**self.reads, "l2": self.l2_reads}.items():
            for read in reads or ():
                yield f"{name} read of {read.nbytes} B", min(read.us, read.nbytes), read.run


def _interpolated(reads: Sequence[Read], nbytes: float) -> float:
    """Bytes per second at a size above the least measured one."""
    if nbytes >= reads[-1].nbytes:
        return reads[-1].bytes_per_s
    for below, above in pairwise(reads):
        if nbytes <= above.nbytes:
            share = log(nbytes / below.nbytes) / log(above.nbytes / below.nbytes)
            return below.bytes_per_s + share * (above.bytes_per_s - below.bytes_per_s)
    return reads[-1].bytes_per_s


def _known(clock: str) -> str:
    if clock not in CLOCKS:
        raise InputError(f"unknown clock {clock!r}; clocks: {', '.join(CLOCKS)}")
    return clock
