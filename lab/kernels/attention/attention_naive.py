"""Every score is written to memory, read for its row's softmax, and read again as a weight: quadratic bytes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Solves, require_choice, require_shared
from lab.kernels.attention import attention_naive_simulation
from lab.kernels.attention.attention_naive_simulation import (
    ALIGNED,
    CHUNK,
    FLOAT,
    LANES,
    MMA_M,
    SCORES,
    SIZE,
    columns_of,
    rows_of,
)
from lab.problems import Attention
from sim.counts import SECTOR, Counts
from sim.errors import ScheduleError
from sim.launch import Argument, Array, Launch, Role, Scalar
from sim.machine import Machine

SOLVES = Solves(
    Attention,
    formats=("bf16", "fp16"),
    arch="sm_80",
    options={"head_dim": (64,), "causal": (False,)},
    facts=("activations", "head_dim", "group", "causal"),
)

MOST_ROWS = 2**31 - 1  # of scores, which a launch numbers in 32 bits


@dataclass(frozen=True)
class Schedule:
    """The tile of a CTA: of scores, and in the weighted sum what it takes at once."""

    block_m: int  # queries
    block_n: int  # keys

    def __post_init__(self) -> None:
        require_choice(self, "block_m", (64, 128))
        require_choice(self, "block_n", (64, 128))

    @property
    def threads(self) -> int:
        return LANES * self.block_m // MMA_M

    @property
    def score_rows(self) -> int:
        """Rows of head_dim elements in shared memory while scores are computed."""
        return self.block_m + self.block_n

    @property
    def weight_bytes(self) -> int:
        """Of a tile of weights in shared memory."""
        return SIZE * self.block_m * self.block_n

    def fits(self, problem: Attention, machine: Machine) -> None:
        most = max(_score_bytes(problem, self), _value_bytes(problem, self))
        require_shared(most, f"tiles of {self.block_m} queries and {self.block_n} keys", machine)
        if rows_of(problem) > MOST_ROWS:
            raise ScheduleError(f"attention_naive numbers up to {MOST_ROWS:,} rows of scores, not {rows_of(problem):,}")


def _score_bytes(problem: Attention, schedule: Schedule) -> int:
    return SIZE * schedule.score_rows * problem.head_dim


def _value_bytes(problem: Attention, schedule: Schedule) -> int:
    return schedule.weight_bytes + SIZE * schedule.block_n * problem.head_dim


def candidates(problem: Attention, machine: Machine) -> Iterator[Schedule]:
    yield from (Schedule(block_m, block_n) for block_m, block_n in ((128, 128), (64, 128), (128, 64), (64, 64)))


def launch(problem: Attention, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p, s = problem, schedule
    down, across, heads = -(-p.q_len // s.block_m), -(-p.kv_len // s.block_n), p.batch * p.q_heads
    rows, columns = rows_of(p), columns_of(p)
    inputs = {name: Array(name, Role.IN, *operand) for name, operand in p.inputs.items()}
    kept = {
        "scores": ((rows, columns), "fp32"),
        "weights": ((rows, columns), p.activations),
        "sums": ((rows,), "fp32"),
    }  # from one launch to the next
    written = {name: Array(name, Role.OUT, *kept[name]) for name in kept}
    read = {name: Array(name, Role.IN, *kept[name]) for name in kept}
    lengths = (inputs["q_starts"], inputs["kv_lens"])
    shape = (Scalar("q_heads", p.q_heads), Scalar("q_len", p.q_len))
    wide = Scalar("columns", columns)

    def of(entry: str, ctas: int, arguments: tuple[Argument, ...], shared_bytes: int = 0) -> Launch:
        return Launch(
            kernel="attention_naive",
            entry=entry,
            problem=p,
            schedule=s,
            grid=(ctas, 1, 1),
            block=(s.threads, 1, 1),
            arguments=arguments,
            shared_bytes=shared_bytes,
        )

    return (
        of(
            "attention_naive",
            across * down * heads,
            (
                inputs["q"], inputs["k"], written["scores"], *lengths, inputs["kv_starts"], *shape,
                Scalar("kv_len", p.kv_len), wide,
            ),
            _score_bytes(p, s),
        ),
        of(
            "attention_naive_softmax",
            -(-rows // (s.threads // LANES)),
            (
                read["scores"], written["weights"], written["sums"], *lengths, *shape, wide, Scalar("rows", rows),
                Scalar("scale", p.score_scale, "float32"),
            ),
        ),
        of(
            "attention_naive_values",
            down * heads,
            (
                read["weights"], read["sums"], inputs["v"], Array("y", Role.OUT, *p.outputs["y"]), *lengths,
                inputs["kv_starts"], *shape, wide,
            ),
            _value_bytes(p, s),
        ),
    )  # fmt: skip


def theory(problem: Attention, schedule: Schedule, machine: Machine) -> Counts:
    """Tiles of scores load q and k, tiles of y all weights of their rows and v; a row's softmax reads it twice."""
    p, s = problem, schedule
    warps, row = s.threads // LANES, SIZE * p.head_dim // SECTOR  # sectors of a row of q, k or v
    down, across = -(-p.q_len // s.block_m), -(-p.kv_len // s.block_n)
    loads = 3 * p.q_heads * p.batch * (warps * down * (across + 1) + p.q_len)  # of the lengths, by every warp
    stores = multiplied = kept = 0
    for b, sequence in enumerate(p.sequences):
        queries, keys = sequence.q_len, sequence.kv_len
        tall, wide = -(-queries // s.block_m), -(-keys // s.block_n)
        multiplied += 2 * tall * wide
        end = np.maximum(p.visible(sequence)[1], 0)
        loads += p.q_heads * warps * tall * (wide + 1)  # of where its keys start
        loads += p.q_heads * (row * (queries * wide + 2 * keys * tall) + queries * -(-keys // ALIGNED))
        loads += p.q_heads * 2 * int((-(-end // SCORES)).sum())
        of_weights = int((-(-end // ALIGNED) + _sectors_of_zeros(end, -(-keys // CHUNK) * CHUNK)).sum())
        stores += p.q_heads * (queries * -(-keys // SCORES) + of_weights + queries + queries * p.head_dim // CHUNK)
        heads = np.arange(b * p.q_heads, (b + 1) * p.q_heads)[:, None] * p.q_len
        at = FLOAT * (heads + np.arange(0, queries, 8))  # sums, eight rows at a time
        size = FLOAT * np.minimum(8, queries - np.arange(0, queries, 8))
        loads += int(((at + size - 1) // SECTOR - at // SECTOR + 1).sum())
        kept += p.q_heads * queries * ((FLOAT + SIZE) * keys + FLOAT)
    return Counts(
        flops=p.flops,
        mma_flops=2 * p.q_heads * multiplied * s.block_m * s.block_n * p.head_dim,
        exp_count=p.pairs,
        global_load_sectors=loads,
        global_store_sectors=stores,
        tma_load_bytes=0,
        l2_to_sm_bytes=SECTOR * loads,
        sm_to_l2_bytes=SECTOR * stores,
        hbm_read_bytes=p.read_bytes + kept,
        hbm_write_bytes=p.write_bytes + kept,
    )


def _sectors_of_zeros(start: NDArray[np.int64], end: int) -> NDArray[np.int64]:
    """Sectors of the requests that clear weights from `start` to `end`, 32 at a time."""
    requests = -(-(end - start) // LANES)
    whole = np.where(start % ALIGNED, 3, 2)
    last = start + LANES * (requests - 1)
    rest = (SIZE * end - 1) // SECTOR - SIZE * last // SECTOR + 1
    return np.where(requests > 0, (requests - 1) * whole + rest, 0)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return attention_naive_simulation.simulate(launch, arrays, machine)
