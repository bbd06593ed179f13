"""What launches read from HBM beyond each input once: GEMM rasters and sizes around the L2's, streams, attention."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.rows import MEGA, Row, Verdict
from experiments.running.backends import Backend
from experiments.running.jobs import Job
from experiments.words import spell
from lab.problems import Attention, Linear, Problem
from lab.record import Archive, Record
from sim.errors import InputError

QUESTION = "How much do launches read from HBM beyond each input once?"

Case = tuple[str, Problem, str]  # kernel, problem, words of its schedule

PINGPONG = "block_m=128,block_n=128,stages=5,y_boxes=2"
CLUSTER = "block_m=128,block_n=256,stages=4,y_boxes=2"


def cases_of(part: str) -> list[Case]:
    """The launches of a part; raises InputError and lists the parts for an unknown one."""
    square = Linear(4096, 4096, 4096)
    parts: dict[str, list[Case]] = {
        "raster": [
            *(("gemm_pingpong", square, f"{PINGPONG},cluster=1,group_m={g}") for g in (11, 1, 2, 4, 8, 32)),
            ("gemm_cluster", square, f"{CLUSTER},cluster=2,group_m=8"),
            ("gemm_cluster", square, f"{CLUSTER},cluster=1,group_m=16"),
            ("gemm_wgmma", square, "group_m=16"),
            ("gemm_wgmma", square, "group_m=1"),
        ],
        "sizes": [
            *(("gemm_pingpong", Linear(n, n, n), f"{PINGPONG},cluster=1,group_m=8") for n in (2048, 2560, 3072)),
            ("gemm_pingpong", Linear(2048, 4096, 4096), f"{PINGPONG},cluster=1,group_m=11"),
            ("gemm_pingpong", Linear(512, 14336, 4096), f"{PINGPONG},cluster=1,group_m=4"),
            ("gemm_cluster", Linear(2048, 13824, 5120), f"{CLUSTER},cluster=2,group_m=8"),
            ("gemm_cluster", Linear(2048, 5120, 13824), f"{CLUSTER},cluster=2,group_m=8"),
            ("gemm_cluster", Linear(16384, 4096, 4096), f"{CLUSTER},cluster=2,group_m=8"),
            *(("gemm_cluster", Linear(8192, 8192, 8192), f"{CLUSTER},cluster=2,group_m={g}") for g in (8, 4, 16)),
        ],
        "streams": [
            ("gemv_vectorized", Linear(1, 8192, 8192), ""),
            ("gemv_mma", Linear(16, 14336, 4096, "int4_g128"), ""),
            ("attention_split_kv", Attention(16, 32, 8, 128, 1, 4096), ""),
            ("attention_pingpong", Attention(1, 32, 8, 128, 8192, 8192), ""),
            ("attention_pingpong", Attention(4, 32, 8, 128, 2048, 2048), ""),
        ],
    }
    if part == "all":
        return [case for cases in parts.values() for case in cases]
    if part not in parts:
        raise InputError(f"part is {', '.join(parts)} or all; got {part!r}")
    return parts[part]


@dataclass(frozen=True)
class Options:
    """`part` is raster (one GEMM's), sizes (of GEMMs, around the L2's), streams (decode, attention) or all."""

    part: str = "all"

    def __post_init__(self) -> None:
        cases_of(self.part)


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """On a GPU the hardware counters of each launch, else their closed forms."""
    jobs = [Job(kernel=k, problem=p.as_dict(), schedules=(words,)) for k, p, words in cases_of(options.part)]
    yield from backend.counted(jobs) if backend.on == "gpu" else backend.timed(jobs, 0)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001 (counters are the runs' own)
    """Bytes read from HBM, in megabytes."""
    for record in records:
        known = {name: value for name, value in (record.problem or {}).items() if name != "kind"}
        theory = ((record.theory or {}).get("hbm_read_bytes") or 0) / MEGA
        counted = (record.counters or {}).get("hbm_read_bytes")
        case = f"{record.kernel} {spell(known)} {spell(record.schedule or {})}"
        yield Row(case, "HBM read, MB", theory, None, counted / MEGA if counted else None, record.source)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """The launch that reads most beyond its inputs."""
    over = [
        (record.counters["hbm_read_bytes"] / record.theory["hbm_read_bytes"], record)
        for record in records
        if record.counters and record.theory and record.theory["hbm_read_bytes"]
    ]
    if not over:
        return Verdict(None, "HBM traffic is counted on a card alone: `lab run hbm_traffic --on gpu`.")
    most, record = max(over, key=lambda pair: pair[0])
    return Verdict(
        None, f"Of {len(over)} launches {record.kernel} reads most beyond its inputs, {most:.2f} times them."
    )
