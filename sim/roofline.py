"""The bills, the intensity, the ridge and the regime of a piece of work on a machine."""

from dataclasses import dataclass

from sim.machine import Machine


@dataclass(frozen=True)
class Roofline:
    """Work placed on a machine's roofline: times in microseconds at data-sheet rates, intensities in FLOP per byte."""

    compute_us: float
    memory_us: float
    launch_us: float
    intensity: float
    ridge: float

    @property
    def regime(self) -> str:
        """The larger bill, "compute" or "memory"; "overhead" when both are below the launch time."""
        if max(self.compute_us, self.memory_us) < self.launch_us:
            return "overhead"
        return "compute" if self.compute_us > self.memory_us else "memory"

    @property
    def floor_us(self) -> float:
        """The largest of the three: no version of this work can be faster."""
        return max(self.compute_us, self.memory_us, self.launch_us)


def roofline(flops: float, hbm_bytes: float, unit: str, machine: Machine, launches: int = 1) -> Roofline:
    """Both bills of `flops` operations on operands of format `unit` and `hbm_bytes` moved, in `launches` kernels."""
    return Roofline(
        compute_us=flops / machine.peak(unit) * 1e6,
        memory_us=hbm_bytes / machine.hbm_bandwidth * 1e6,
        launch_us=launches * machine.launch_us,
        intensity=flops / hbm_bytes if hbm_bytes else 0.0,  # sequences without tokens move nothing
        ridge=machine.ridge(unit),
    )
