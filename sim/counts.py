"""Counts: what moved and what was computed, with one meaning for every counter of it."""

from dataclasses import dataclass, fields
from functools import lru_cache
from math import gcd

SECTOR = 32  # bytes: the unit in which L2 moves data


@dataclass(frozen=True)
class Counts:
    """Bytes by level and operations by unit; None means "not counted by this source".

    flops: useful work (2mnk; attention: unmasked pairs). mma_flops: issued to the tensor cores, padding included.
    global_load_sectors, global_store_sectors: unique 32-byte sectors per warp request, before L1, ordinary accesses.
    tma_load_bytes: as complete_tx reports, full boxes, once per destination SM.
    l2_to_sm_bytes: 32 x in-bounds sectors delivered to SMs: TMA per destination and box row, plus ordinary loads (an
    upper bound where a kernel leans on L1). sm_to_l2_bytes: 32 x sectors touched by stores after clipping.
    hbm_read_bytes, hbm_write_bytes: compulsory in theory, predicted by the simulators. l2_dirty_bytes: predicted to be
    left in L2 at the end. l2_lookup_bytes: a prediction. peer_read_bytes, peer_write_bytes: 32 x sectors of arrays in
    other GPUs' memory, each once: what crosses the links, and part of the HBM bytes, which are those of all chips.
    """

    flops: int | None = None
    mma_flops: int | None = None
    exp_count: int | None = None
    global_load_sectors: int | None = None
    global_store_sectors: int | None = None
    tma_load_bytes: int | None = None
    l2_to_sm_bytes: int | None = None
    sm_to_l2_bytes: int | None = None
    hbm_read_bytes: int | None = None
    hbm_write_bytes: int | None = None
    l2_dirty_bytes: int | None = None
    l2_lookup_bytes: int | None = None
    peer_read_bytes: int | None = None
    peer_write_bytes: int | None = None

    @classmethod
    def zero(cls) -> "Counts":
        """Nothing moved, nothing computed: what sums begin with."""
        return cls(**{f.name: 0 for f in fields(cls)})

    def as_dict(self) -> dict[str, int | None]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __add__(self, other: "Counts") -> "Counts":
        """Both launches together; a field that either does not count is not counted in the sum."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Counts(**{name: None if a is None or b is None else a + b for name, a, b in pairs})


# theory == tile simulator == PTX emulator holds exactly for these; the rest are predictions.
EXACT = (
    "flops",
    "mma_flops",
    "exp_count",
    "global_load_sectors",
    "global_store_sectors",
    "tma_load_bytes",
    "l2_to_sm_bytes",
    "sm_to_l2_bytes",
)


def disagreements(a: Counts, b: Counts) -> dict[str, tuple[int, int]]:
    """The EXACT fields that both sources count and on which they differ."""
    pairs = {name: (getattr(a, name), getattr(b, name)) for name in EXACT}
    return {name: pair for name, pair in pairs.items() if None not in pair and pair[0] != pair[1]}


def sectors(start: int, nbytes: int) -> int:
    """How many 32-byte sectors the byte range [start, start + nbytes) touches."""
    return (start + nbytes - 1) // SECTOR - start // SECTOR + 1 if nbytes > 0 else 0


@lru_cache(maxsize=4096)  # schedules of one problem ask for the same few
def row_sectors(rows: int, row_bytes: int, start: int, nbytes: int) -> int:
    """Sectors of the column range [start, start + nbytes) summed over rows 0..rows-1 of a matrix with that row pitch.

    The offset of a row within a sector repeats every 32 / gcd(row_bytes, 32) rows, so few rows stand for all.
    """
    period = SECTOR // gcd(row_bytes, SECTOR)
    counts = [sectors(r * row_bytes + start, nbytes) for r in range(min(period, rows))]
    return rows // period * sum(counts) + sum(counts[: rows % period]) if rows >= period else sum(counts)


def box_sectors(rows: int, row_bytes: int, box_bytes: int) -> int:
    """Sectors of the boxes that lie side by side along the rows, each asked for by itself; the last one may be cut.

    A box is whole sectors wide, so that each but the last counts as many as the first.
    """
    whole = row_bytes // box_bytes
    rest = row_sectors(rows, row_bytes, whole * box_bytes, row_bytes % box_bytes)
    return whole * row_sectors(rows, row_bytes, 0, box_bytes) + rest


def lane_sectors(start: int, stride: int, width: int, lanes: int) -> int:
    """Unique sectors of one request in which lane l accesses `width` naturally aligned bytes at start + l stride."""
    return lanes if stride >= SECTOR else sectors(start, (lanes - 1) * stride + width)
