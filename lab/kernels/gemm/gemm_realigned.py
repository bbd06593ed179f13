"""x, or x and w, are copied to rows of whole lines, then multiplied: any k and n on the tensor cores."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import RANKING_CLOCK, Bills, Solves, require_choice
from lab.kernels.common import linear
from lab.kernels.common.raster import tiles_of
from lab.kernels.gemm import cluster_ring, gemm_cluster, wgmma_mainloop, wgmma_model
from lab.problems import Linear
from sim.counts import EXACT, SECTOR, Counts, box_sectors, sectors
from sim.errors import ScheduleError
from sim.jit import njit
from sim.launch import Argument, Array, Launch, Role, Scalar, TensorMap
from sim.machine import Machine
from sim.tiles import SimulatedChip, load_vector, store_vector

SOLVES = Solves(Linear, formats=("bf16", "fp16"), arch="sm_90a", after="gemm_naive")

SIZE = 2  # bytes of an element of x, w and y
LINE, CHUNK = 64, 8  # elements of 128 bytes, of 16
WARP = 32
CTAS_PER_SM = 8  # of a copy


@dataclass(frozen=True)
class Schedule(gemm_cluster.Schedule):
    """What is copied, and how the copies are multiplied: as gemm_cluster does."""

    copied: int = 2  # operands: 1 is x alone, 2 is w too

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "copied", (1, 2))

    @property
    def copy_threads(self) -> int:
        """Of a CTA."""
        return 256

    @property
    def unroll(self) -> int:
        """Elements that a lane copies at once."""
        return 8

    def fits(self, problem: Linear, machine: Machine) -> None:
        if self.copied == 1 and (problem.k % CHUNK or problem.n % CHUNK):
            raise ScheduleError(
                f"w stays as it is where k and n are multiples of {CHUNK}; k = {problem.k:,}, n = {problem.n:,}"
            )
        super().fits(product_of(problem), machine)


def product_of(problem: Linear) -> Linear:
    """What is multiplied: rows of x and w are whole lines, as are those of y unless they are whole chunks as it is.

    What is added to them is zero.
    """
    p = problem
    return replace(p, n=tiles_of(p.n, LINE) * LINE if p.n % CHUNK else p.n, k=tiles_of(p.k, LINE) * LINE)


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """gemm_cluster's, with w as it is where it can be, and copied."""
    schedules = []
    for one in cluster_ring.spread(gemm_cluster.Schedule, gemm_cluster.SHAPES, product_of(problem), machine):
        for copied in (1, 2):
            with suppress(ScheduleError):
                schedule = Schedule(**asdict(one), copied=copied)
                schedule.fits(problem, machine)
                schedules.append(schedule)
    yield from sorted(schedules, key=lambda s: bills(problem, s, machine, RANKING_CLOCK).us)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p, s, product = problem, schedule, product_of(problem)
    x, w, y, m, n, k = linear.arguments(p)
    names = {"x": "x_lines", **({"w": "w_lines"} if s.copied == 2 else {}), **({"y": "y_lines"} if _padded(p) else {})}
    (multiply,) = gemm_cluster.launch(product, s, machine)
    lines = {
        name: Array(name, Role.WORKSPACE, array.shape, array.format)
        for array in multiply.arrays
        if (name := names.get(array.name))
    }
    w_lines = lines.get("w_lines", Scalar("w_lines", 0, "int64"))
    to_lines = (x, w, lines["x_lines"], w_lines, m, Scalar("w_rows", _w_rows(p, s)), k, Scalar("pitch", product.k))
    launches = [copy("gemm_realigned", p, s, p.m + _w_rows(p, s), p.k, to_lines, machine)]
    launches.append(replace(multiply, arguments=tuple(_from_lines(a, names, lines, w) for a in multiply.arguments)))
    if _padded(p):
        from_lines = (lines["y_lines"], y, m, n, Scalar("pitch", product.n))
        launches.append(copy("gemm_realigned_store", p, s, p.m, p.n, from_lines, machine))
    return tuple(launches)


def _padded(problem: Linear) -> bool:
    """Whether y is copied."""
    return problem.n % CHUNK > 0


def _w_rows(problem: Linear, schedule: Schedule) -> int:
    """Rows of w that are copied."""
    return problem.n if schedule.copied == 2 else 0


def copy(
    entry: str, problem: Linear, schedule: Schedule, rows: int, columns: int, arguments: tuple[Argument, ...],
    machine: Machine,
) -> Launch:  # fmt: skip
    """A launch of one of gemm_realigned.cu's copies, of so many rows and columns."""
    s = schedule
    stretches = rows * tiles_of(columns, WARP * s.unroll)
    ctas = min(tiles_of(stretches, s.copy_threads // WARP), CTAS_PER_SM * machine.sms)
    return Launch("gemm_realigned", entry, problem, s, (ctas, 1, 1), (s.copy_threads, 1, 1), arguments)


def _from_lines(argument: Argument, names: Mapping[str, str], lines: Mapping[str, Array], w: Argument) -> Argument:
    """A parameter of gemm_cluster with the arrays that were copied, and w as it is where it was not."""
    match argument:
        case Array(name=name) if name in names:
            return lines[names[name]]
        case TensorMap(array=name) if name in names:
            return replace(argument, array=names[name])
        case Array(name="w"):
            return w
        case TensorMap(array="w") if isinstance(w, Array):
            return replace(argument, shape=w.shape, strides=(w.shape[1], 1))
    return argument


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """What gemm_cluster moves, and the copies: a warp asks for 64 bytes at a time, which begin anywhere in a row."""
    p, s, product = problem, schedule, product_of(problem)
    counts = gemm_cluster.theory(product, s, machine) + copied_to_lines(p.m, p.k)
    if s.copied == 2:
        counts += copied_to_lines(p.n, p.k)
    else:  # rows of w are as they were, and lie in more sectors
        tiles_m = s.cluster * tiles_of(p.m, s.cluster * s.block_m)
        step = wgmma_mainloop.STEP_BYTES
        more = box_sectors(p.n, SIZE * p.k, step) - box_sectors(p.n, SIZE * product.k, step)
        counts += replace(_copied(0, 0, 0, 0), l2_to_sm_bytes=SECTOR * tiles_m * more)
    if _padded(p):
        row = SIZE * p.n
        stored = box_sectors(p.m, row, SIZE * WARP), sectors(0, p.m * row)
        counts += _copied(p.m * sectors(0, row), p.m * sectors(0, row), *stored)
    return replace(counts, flops=p.flops)


def copied_to_lines(rows: int, columns: int) -> Counts:
    """Of a copy of dense rows to rows of whole lines."""
    row = SIZE * columns
    written = rows * sectors(0, row)
    return _copied(box_sectors(rows, row, SIZE * WARP), sectors(0, rows * row), written, written)


def _copied(read: int, from_hbm: int, written: int, to_hbm: int) -> Counts:
    """Of a copy, in sectors."""
    zero = dict.fromkeys((*EXACT, "hbm_read_bytes", "hbm_write_bytes"), 0)
    return Counts(
        **zero
        | {
            "global_load_sectors": read,
            "global_store_sectors": written,
            "l2_to_sm_bytes": SECTOR * read,
            "sm_to_l2_bytes": SECTOR * written,
            "hbm_read_bytes": SECTOR * from_hbm,
            "hbm_write_bytes": SECTOR * to_hbm,
        }
    )


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """gemm_cluster's, and the copies at the rate of a large one, each behind a launch of its own."""
    p, s = problem, schedule
    crossing_w = s.copied == 1 and wgmma_model.crosses_lines(p)
    multiplied = cluster_ring.bills(product_of(p), s, machine, clock, crossing_w)
    us = copy_us(SIZE * (p.m + _w_rows(p, s)) * p.k, machine, clock)
    if _padded(p):
        us += copy_us(SIZE * p.m * p.n, machine, clock)
    return Bills(multiplied.us + us, {**multiplied.parts, "copies": us}, (*multiplied.apart, "copies"))


def copy_us(nbytes: int, machine: Machine, clock: str) -> float:
    """What a launch that copies takes at the rate of a large copy."""
    return fits.launch_us(machine, clock) + 1e6 * 2 * nbytes / fits.copy_rate(machine)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    if launch.kernel == "gemm_cluster":
        return replace(gemm_cluster.simulate(launch, arrays, machine), flops=0)
    useful = launch.problem.flops if launch.entry == "gemm_realigned" else 0  # once, without what is added to k and n
    return replace(simulate_copy(launch, arrays, machine), flops=useful)


def simulate_copy(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    """A launch that `copy` made."""
    chip = SimulatedChip(launch, machine)
    described = {array.name: array for array in launch.arrays}
    for target in ("x_lines", "w_lines", "y"):
        source = target.removesuffix("_lines") if launch.entry == "gemm_realigned" else f"{target}_lines"
        if target not in described or source not in described:
            continue
        rows, columns = min(described[source].shape, described[target].shape)
        pitches = (SIZE * described[name].shape[1] for name in (source, target))
        _count_copy(chip.count[0], chip.marks(source), chip.marks(target), rows, SIZE * columns, *pitches)
        if arrays:
            arrays[target][:rows, :columns] = arrays[source][:rows, :columns]
    return chip.counts()


@njit(cache=True)
def _count_copy(count, source_marks, target_marks, rows, row_bytes, source_pitch, target_pitch):
    for row in range(rows):
        for at in range(0, row_bytes, SIZE * WARP):
            nbytes = min(SIZE * WARP, row_bytes - at)
            load_vector(count, source_marks, row * source_pitch + at, nbytes)
            store_vector(count, target_marks, row * target_pitch + at, nbytes)
