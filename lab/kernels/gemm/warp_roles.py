"""Warp roles of a wgmma GEMM: one warpgroup loads and two multiply, each half of a tile's rows."""

from abc import abstractmethod

from lab.kernel import require_choice
from lab.kernels.common.raster import require_group
from lab.kernels.gemm.wgmma_mainloop import MMA_M, Tiling, require_accumulators

CONSUMERS = 2  # warpgroups that multiply; one more loads
Y_BOX = MMA_M * 128  # bytes: 64 rows of 128 bytes of y


class RoleTiling(Tiling):
    """What the schedules with warp roles have in common; a schedule adds the field `group_m`."""

    group_m: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_rows()
        require_accumulators(self.accumulators)
        require_group(self.group_m)

    def require_rows(self) -> None:
        """Raise ScheduleError where a consumer's part of a tile is not whole rows of mma."""
        require_choice(self, "block_m", (128, 256))

    @property
    @abstractmethod
    def y_bytes(self) -> int:
        """A consumer's buffers for y."""

    @property
    def accumulators(self) -> int:
        """Of a consumer's thread."""
        return self.block_m // CONSUMERS * self.block_n // 128

    @property
    def threads(self) -> int:
        return (1 + CONSUMERS) * 128

    @property
    def shared_bytes(self) -> int:
        return self.ring_bytes + CONSUMERS * self.y_bytes
