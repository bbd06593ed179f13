"""Sampling without a sort: a cluster holds a row in registers, and races are run until the winner is one to keep."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Solves, require_choice, require_threads
from lab.kernels.rowwise.row_parts import LANES, REQUEST, SIZE, requests
from lab.problems.sampling import FLOPS, Sampling, Settings, random_words
from sim.counts import SECTOR, Counts, row_sectors
from sim.errors import ScheduleError
from sim.formats import decode
from sim.jit import njit
from sim.launch import Array, Launch, Role, Scalar
from sim.machine import Machine
from sim.tiles import SimulatedChip, count_exp, count_fma, load_vector, store_vector

SOLVES = Solves(
    Sampling,
    formats=("bf16", "fp16"),
    arch="sm_90",
    row_bytes=16,
    why_multiple="rows are read 16 bytes at a time",
    at_most={"n": 2**18},
    facts=("activations",),
)

VECTOR = REQUEST // LANES  # elements of a lane's load
# (CTAs of a row, warps, vectors) whose registers spill, as NVRTC 13.0 and 13.5 compile them for sm_90a.
SPILLING = {*((1, warps, 8) for warps in (1, 2, 4, 8, 16)), (1, 16, 4), (2, 8, 2), (2, 16, 2), (2, 16, 8)}
SETTING_BYTES = 32  # of a row
RESULT_BYTES = 4  # of a token, of a log-probability


@dataclass(frozen=True)
class Schedule:
    """How a row is shared."""

    cluster: int  # CTAs of a row
    warps: int
    vectors: int  # 16-byte loads of a lane that cover its part of a row

    def __post_init__(self) -> None:
        require_choice(self, "cluster", (1, 2, 4, 8))
        require_choice(self, "warps", (1, 2, 4, 8, 16))
        require_choice(self, "vectors", (1, 2, 4, 8))

    @property
    def threads(self) -> int:
        return LANES * self.warps

    @property
    def columns(self) -> int:
        """Elements that the CTAs of a row have room for."""
        return self.cluster * self.warps * self.vectors * REQUEST

    def fits(self, problem: Sampling, machine: Machine) -> None:
        require_threads(1, self.threads, machine)
        if problem.n > self.columns:
            raise ScheduleError(
                f"{self.cluster} CTAs of {self.warps} warps of {self.vectors} vectors hold a row of {self.columns:,} "
                f"elements; n = {problem.n:,}"
            )
        if (self.cluster, self.warps, self.vectors) in SPILLING:
            raise ScheduleError(f"{self} needs more registers than a thread has")


def candidates(problem: Sampling, machine: Machine) -> Iterator[Schedule]:
    """Those with the fewest idle lanes; for few rows large clusters first, for many small ones."""
    choices = [(c, w, v) for c in (1, 2, 4, 8) for w in (1, 2, 4, 8, 16) for v in (1, 2, 4, 8)]
    every = (Schedule(*choice) for choice in choices if choice not in SPILLING)
    legal = [s for s in every if s.columns >= problem.n]
    useful = [s for s in legal if s.columns <= 2 * max(problem.n, REQUEST)]
    few = problem.m * 8 <= machine.sms
    yield from sorted(useful, key=lambda s: (s.columns, -s.cluster if few else s.cluster, abs(s.warps - 8), s.vectors))


def launch(problem: Sampling, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p, s = problem, schedule
    return (
        Launch(
            kernel="sample",
            entry="sample",
            problem=p,
            schedule=s,
            grid=(p.m * s.cluster, 1, 1),
            block=(s.threads, 1, 1),
            cluster=(s.cluster, 1, 1),
            arguments=(
                *(Array(name, Role.IN, *operand) for name, operand in p.inputs.items()),
                *(Array(name, Role.OUT, *operand) for name, operand in p.outputs.items()),
                Scalar("n", p.n),
            ),
            dependent=True,
        ),
    )


def theory(problem: Sampling, schedule: Schedule, machine: Machine) -> Counts:
    """However many races a row takes, it is read once; exponentials of lanes beyond a row are counted too."""
    p, s = problem, schedule
    of_rows = sum(row_sectors(p.m, SIZE * p.n, *request) for request in requests(p.n))
    loads = of_rows + p.m * (2 * s.cluster * s.warps + 1)
    return Counts(
        flops=p.flops,
        mma_flops=0,
        exp_count=2 * p.m * s.columns,
        global_load_sectors=loads,
        global_store_sectors=2 * p.m,
        tma_load_bytes=0,
        l2_to_sm_bytes=SECTOR * loads,
        sm_to_l2_bytes=SECTOR * 2 * p.m,
        hbm_read_bytes=p.read_bytes,
        hbm_write_bytes=p.write_bytes,
    )


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    tokens = np.zeros(p.m, np.int64)
    if arrays:
        for row, bits in enumerate(arrays["logits"]):
            logits = decode(bits, p.activations)
            tokens[row] = token = _sampled(logits, Settings.of_words(arrays["settings"][row]))
            arrays["token"][row] = token
            away = logits - logits.max()
            arrays["log_probability"][row] = away[token] - np.log(np.exp(away).sum(dtype=np.float32))
    marks = (chip.marks(name) for name in (*p.inputs, *p.outputs))
    chip.on_all_cores(_grid, chip.count, *marks, tokens, p.n, s.cluster * s.warps, s.vectors)
    return chip.counts()


def _sampled(logits: NDArray[np.float32], s: Settings) -> int:
    """The races of the kernel, in float32."""
    if s.temperature == 0:
        return int(logits.argmax())
    weight = np.exp((logits - logits.max()) / np.float32(s.temperature))
    uniform = (random_words(s, logits.size).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    with np.errstate(divide="ignore"):
        score = weight / -np.log1p(-uniform)
    share, floor = np.float32(s.top_p) * weight.sum(dtype=np.float32), np.float32(0)
    while True:
        able = (weight > floor) & (weight >= np.float32(s.min_p))
        winner = int(np.where(able, score, -1).argmax())
        above = weight[weight > weight[winner]]
        if (s.top_k == 0 or above.size < s.top_k) and (s.top_p >= 1 or above.sum(dtype=np.float32) < share):
            return winner
        floor = weight[winner]


@njit(cache=True, nogil=True)
def _grid(core, cores, count, logits, settings, token, log_probability, tokens, n, warps, vectors):
    """Rows are dealt to SMs; `warps` are all those of a row."""
    sms = count.shape[0]
    for sm in range(core, sms, cores):
        mine = count[sm]
        for row in range(sm, tokens.size, sms):
            for warp in range(warps):
                load_vector(mine, settings, SETTING_BYTES * row, SETTING_BYTES // 2)
                load_vector(mine, settings, SETTING_BYTES * row + SETTING_BYTES // 2, SETTING_BYTES // 2)
                for vector in range(vectors):
                    at = (warp * vectors + vector) * REQUEST
                    load_vector(mine, logits, SIZE * (row * n + at), SIZE * max(min(REQUEST, n - at), 0))
            count_exp(mine, 2 * warps * vectors * REQUEST)
            count_fma(mine, FLOPS * n // 2)
            load_vector(mine, logits, SIZE * (row * n + tokens[row]), SIZE)
            store_vector(mine, token, RESULT_BYTES * row, RESULT_BYTES)
            store_vector(mine, log_probability, RESULT_BYTES * row, RESULT_BYTES)
