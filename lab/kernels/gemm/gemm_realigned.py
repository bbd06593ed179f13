"""x and w are copied to rows that begin with a 128-byte line, then multiplied: any k and n on the tensor cores."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import Bills, Solves
from lab.kernels.common import linear
from lab.kernels.common.raster import tiles_of
from lab.kernels.gemm import gemm_cluster
from lab.problems import Linear
from sim.counts import SECTOR, Counts, box_sectors, sectors
from sim.jit import njit
from sim.launch import Argument, Array, Launch, Role, Scalar
from sim.machine import Machine
from sim.tiles import SimulatedChip, load_vector, store_vector

SOLVES = Solves(Linear, formats=("bf16", "fp16"), arch="sm_90a", after="gemm_naive")

SIZE = 2  # bytes of an element of x, w and y
LINE, CHUNK = 64, 8  # elements of 128 bytes, of 16
WARP = 32
CTAS_PER_SM = 8  # of a copy


@dataclass(frozen=True)
class Schedule(gemm_cluster.Schedule):
    """How the copies are multiplied, as gemm_cluster does."""

    @property
    def copy_threads(self) -> int:
        return 256

    @property
    def unroll(self) -> int:
        """Elements that a lane copies at once."""
        return 8

    def fits(self, problem: Linear, machine: Machine) -> None:
        super().fits(product_of(problem), machine)


def product_of(problem: Linear) -> Linear:
    """What is multiplied: rows of x and w are whole lines, as are those of y unless they are whole chunks as it is.

    What is added to them is zero.
    """
    p = problem
    return replace(p, n=tiles_of(p.n, LINE) * LINE if p.n % CHUNK else p.n, k=tiles_of(p.k, LINE) * LINE)


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    for s in gemm_cluster.candidates(product_of(problem), machine):
        yield Schedule(s.block_m, s.block_n, s.stages, s.y_boxes, s.cluster, s.group_m)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p, s, product = problem, schedule, product_of(problem)
    x, w, y, m, n, k = linear.arguments(p)
    to_lines = (
        x, w, Array("x_lines", Role.WORKSPACE, (p.m, product.k), p.weights),
        Array("w_lines", Role.WORKSPACE, (product.n, product.k), p.weights), m, n, k, Scalar("pitch", product.k),
    )  # fmt: skip
    (multiply,) = gemm_cluster.launch(product, s, machine)
    names = {"x": "x_lines", "w": "w_lines", **({"y": "y_lines"} if product.n > p.n else {})}
    launches = [_copy("gemm_realigned", p, s, p.m + p.n, p.k, to_lines, machine), _renamed(multiply, names)]
    if product.n > p.n:
        lines = Array("y_lines", Role.WORKSPACE, (p.m, product.n), p.output)
        from_lines = (lines, y, m, n, Scalar("pitch", product.n))
        launches.append(_copy("gemm_realigned_store", p, s, p.m, p.n, from_lines, machine))
    return tuple(launches)


def _copy(
    entry: str, problem: Linear, schedule: Schedule, rows: int, columns: int, arguments: tuple[Argument, ...],
    machine: Machine,
) -> Launch:  # fmt: skip
    s = schedule
    stretches = rows * tiles_of(columns, WARP * s.unroll)
    ctas = min(tiles_of(stretches, s.copy_threads // WARP), CTAS_PER_SM * machine.sms)
    return Launch("gemm_realigned", entry, problem, s, (ctas, 1, 1), (s.copy_threads, 1, 1), arguments)


def _renamed(launch: Launch, names: Mapping[str, str]) -> Launch:
    """The same launch on arrays of other names, all of them workspaces."""

    def renamed(argument: Argument) -> Argument:
        if isinstance(argument, Array) and argument.name in names:
            return replace(argument, name=names[argument.name], role=Role.WORKSPACE)
        if isinstance(argument, Scalar | Array):
            return argument
        return replace(argument, array=names.get(argument.array, argument.array))

    return replace(launch, arguments=tuple(renamed(argument) for argument in launch.arguments))


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """What gemm_cluster moves, and the copies: a warp asks for 64 bytes at a time, which begin anywhere in a row."""
    p, product = problem, product_of(problem)
    row = SIZE * p.k
    read = box_sectors(p.m, row, SIZE * WARP) + box_sectors(p.n, row, SIZE * WARP)
    written = (p.m + p.n) * sectors(0, row)
    from_hbm = sectors(0, p.m * row) + sectors(0, p.n * row)
    to_hbm = written
    if product.n > p.n:
        row = SIZE * p.n
        read += p.m * sectors(0, row)
        written += box_sectors(p.m, row, SIZE * WARP)
        from_hbm += p.m * sectors(0, row)
        to_hbm += sectors(0, p.m * row)
    counts = gemm_cluster.theory(product, schedule, machine)
    copies = Counts(
        **{name: 0 for name, value in counts.as_dict().items() if value is not None}
        | {
            "global_load_sectors": read,
            "global_store_sectors": written,
            "l2_to_sm_bytes": SECTOR * read,
            "sm_to_l2_bytes": SECTOR * written,
            "hbm_read_bytes": SECTOR * from_hbm,
            "hbm_write_bytes": SECTOR * to_hbm,
        }
    )
    return replace(counts + copies, flops=p.flops)


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """gemm_cluster's, and the copies at the rate of a large one, each behind a launch of its own."""
    p, product = problem, product_of(problem)
    multiplied = gemm_cluster.bills(product, schedule, machine, clock)
    copied = [SIZE * (p.m + p.n) * p.k, *([SIZE * p.m * p.n] if product.n > p.n else [])]
    us = sum(fits.launch_us(machine, clock) + 1e6 * 2 * nbytes / fits.copy_rate(machine) for nbytes in copied)
    return Bills(multiplied.us + us, {**multiplied.parts, "copies": us}, (*multiplied.apart, "copies"))


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p = launch.problem
    if launch.kernel == "gemm_cluster":
        return replace(gemm_cluster.simulate(launch, arrays, machine), flops=0)
    chip = SimulatedChip(launch, machine)
    pairs = {"gemm_realigned": (("x", "x_lines"), ("w", "w_lines")), "gemm_realigned_store": (("y_lines", "y"),)}
    described = {array.name: array for array in launch.arrays}
    for source, target in pairs[launch.entry]:
        rows, columns = min(described[source].shape, described[target].shape)
        pitches = (SIZE * described[name].shape[1] for name in (source, target))
        _count_copy(chip.count[0], chip.marks(source), chip.marks(target), rows, SIZE * columns, *pitches)
        if arrays:
            arrays[target][:rows, :columns] = arrays[source][:rows, :columns]
    useful = p.flops if launch.entry == "gemm_realigned" else 0  # once, without what is added to k and n
    return replace(chip.counts(), flops=useful)


@njit(cache=True)
def _count_copy(count, source_marks, target_marks, rows, row_bytes, source_pitch, target_pitch):
    for row in range(rows):
        for at in range(0, row_bytes, SIZE * WARP):
            nbytes = min(SIZE * WARP, row_bytes - at)
            load_vector(count, source_marks, row * source_pitch + at, nbytes)
            store_vector(count, target_marks, row * target_pitch + at, nbytes)
