"""What launches read from HBM beyond each input once: GEMM rasters and sizes around the L2's, streams, attention."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from experiments import markdown
from experiments.lookup import question_of, stale
from experiments.markdown import figure
from experiments.rows import MEGA, Row, Verdict
from experiments.running.backends import Backend
from experiments.running.jobs import Job
from experiments.words import spell
from lab import catalog
from lab.kernel import recorded_schedule
from lab.problems import Attention, Linear, Problem
from lab.record import Archive, Record
from sim.cache.walk import l2_of
from sim.errors import InputError
from sim.machine import machine

QUESTION = "How much do launches read from HBM beyond each input once?"

NAMES = {"compulsory": "each sector once", "whole": "one L2", "halves": "an L2 of two halves"}
SHOWN = ("m", "n", "k", "weights", "batch", "q_len", "kv_len", "block_m", "block_n", "cluster", "group_m")
MEDIAN, WORST = 0.05, 0.10  # bars of a walk's error
BEYOND = 1.2

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
        # Shapes and rasters that no model was made by: what a record has as simulated was foretold.
        "unseen": [
            ("gemm_pingpong", Linear(3584, 5120, 4096), f"{PINGPONG},cluster=1,group_m=6"),
            ("gemm_cluster", Linear(6144, 4096, 2048), f"{CLUSTER},cluster=2,group_m=3"),
            ("gemm_persistent", Linear(4096, 8192, 4096), "group_m=12"),
            ("gemm_warp_specialized", Linear(5120, 5120, 5120), "block_m=128,block_n=160,stages=5,group_m=5"),
            ("gemm_cluster", Linear(1024, 28672, 4096), f"{CLUSTER},cluster=1,group_m=2"),
            ("gemm_pingpong", Linear(8192, 4096, 1024), f"{PINGPONG},cluster=2,group_m=5"),
            ("gemm_wgmma", Linear(3000, 5008, 4104), "group_m=10"),
            ("gemm_fp8_promoted", Linear(4096, 8192, 8192, "fp8", "fp8", scales="tensor"), "group_m=7"),
            ("gemm_mma_sync", Linear(3072, 4096, 4096), "group_m=2"),
            ("gemm_cluster", Linear(4096, 12288, 4096), f"{CLUSTER},cluster=2,group_m=16"),
        ],
    }
    if part == "all":
        return [case for cases in parts.values() for case in cases]
    if part not in parts:
        raise InputError(f"part is {', '.join(parts)} or all; got {part!r}")
    return parts[part]


@dataclass(frozen=True)
class Options:
    """`part` is raster (one GEMM's), sizes (of GEMMs, around the L2's), streams (decode,
    attention), unseen (launches that no model was made by) or all."""

    part: str = "all"

    def __post_init__(self) -> None:
        cases_of(self.part)


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """On a GPU the hardware counters of each launch, else their closed forms."""
    jobs = [Job(kernel=k, problem=p.as_dict(), schedules=(words,)) for k, p, words in cases_of(options.part)]
    yield from backend.counted(jobs) if backend.on == "gpu" else backend.timed(jobs, 0)


class Rungs(NamedTuple):
    """Bytes that HBM reads for a launch, by one model of L2 after the other and by its counter; None where untold."""

    compulsory: int  # every sector once
    whole: int | None  # a walk of an L2 that holds a line once
    halves: int | None  # one that holds what both of its halves ask for twice
    counted: float | None


def rungs_of(record: Record) -> Rungs:
    """As the models are today; raises InputError or ScheduleError where the record's kernel has no such schedule."""
    kernel, problem, chip = catalog.get(record.kernel or ""), question_of(record), machine(record.machine)
    schedule = recorded_schedule(kernel, record.schedule or {})
    once = kernel.module.theory(problem, schedule, chip).hbm_read_bytes or 0
    again = [kernel.reread(problem, schedule, l2_of(chip, halves), chip) for halves in (1, 2)]  # type: ignore[arg-type]
    whole, halves = (None if more is None else once + more for more in again)
    return Rungs(once, whole, halves, (record.counters or {}).get("hbm_read_bytes"))


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001 (counters are the runs' own)
    """Bytes read from HBM, in megabytes: what must be, what a walk of L2 says, what was counted."""
    for record in records:
        found = rungs_of(record)
        known = {name: value for name, value in (record.problem or {}).items() if name != "kind"}
        case = f"{record.kernel} {spell(known)} {spell(record.schedule or {})}"
        walked, counted = (None if each is None else each / MEGA for each in (found.halves, found.counted))
        yield Row(case, "HBM read, MB", found.compulsory / MEGA, walked, counted, record.source)


def off(found: Rungs) -> dict[str, float]:
    """How far each rung lies from the counter, as a share of it; one without a figure has the last one's before it."""
    said, errors = 0.0, {}
    for name in NAMES:
        said = getattr(found, name) if getattr(found, name) is not None else said
        errors[name] = said / (found.counted or 1.0) - 1
    return errors


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """Each model's error over the launches that were counted; walks hold where they are within their bar."""
    counted = [found for record in records if (found := rungs_of(record)).counted]
    if not counted:
        return Verdict(None, "HBM traffic is counted on a card alone: `lab run hbm_traffic --on gpu`.")
    errors = [abs(off(found)["halves"]) for found in counted if found.halves is not None]
    held = median(errors) <= MEDIAN and max(errors) <= WORST if errors else None
    return Verdict(held, " ".join(_said(counted)))


def _said(counted: Sequence[Rungs]) -> Iterator[str]:
    """A sentence for each group of launches."""
    walked = [found for found in counted if found.halves is not None]
    groups = {
        "whose order of requests is walked": walked,
        f"of them that read at least {BEYOND:g} times each sector once": [
            found for found in walked if (found.counted or 0) >= BEYOND * found.compulsory
        ],
        "without a walk": [found for found in counted if found.halves is None],
    }
    for what, those in groups.items():
        parts = []
        for name, title in NAMES.items():
            shares = [abs(off(found)[name]) for found in those if getattr(found, name) is not None]
            if shares:
                parts.append(f"{title} is off by {median(shares):.1%} in the median and {max(shares):.1%} at worst")
        if parts:
            yield f"Of the {len(those)} launches {what}, {'; '.join(parts)}."


def table(past: Archive) -> str:
    """Every launch whose HBM reads were counted, by card: each model of L2 beside the counter."""
    newest: dict[str, Record] = {}
    for record in past.where(on="gpu").records:
        if record.kernel and "hbm_read_bytes" in (record.counters or {}) and not stale(record):
            newest[repr((record.machine, record.kernel, record.problem, record.schedule))] = record
    if not newest:
        return "No records yet: `lab run hbm_traffic --on gpu` makes them."
    ordered = sorted(((rungs_of(r), r) for r in newest.values()), key=lambda pair: -abs(off(pair[0])["halves"]))
    cells = []
    for found, record in ordered:
        words = [
            spell({n: v for n, v in (given or {}).items() if n in SHOWN}) for given in (record.problem, record.schedule)
        ]
        megas = [figure(None if each is None else each / MEGA) for each in found]
        cells.append([record.machine, f"`{record.kernel}`", *words, *megas, f"{off(found)['halves']:+.1%}"])
    headings = ["card", "kernel", "problem", "schedule", *NAMES.values(), "counted, MB", "error"]
    return f"{' '.join(_said([found for found, _ in ordered]))}\n\n{markdown.table(headings, cells)}"
