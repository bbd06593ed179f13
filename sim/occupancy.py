"""How many CTAs of a launch an SM holds at once, and what limits them."""

from dataclasses import asdict, dataclass
from typing import Any

from sim.launch import Launch
from sim.machine import Machine

WARP = 32
QUARTERS = 4  # of an SM: each has a quarter of its registers, and a CTA's warps are spread over them
REGISTER_UNIT = 256  # registers that a warp gets are a multiple of it


@dataclass(frozen=True)
class Occupancy:
    """CTAs that are resident on an SM, `limit` being what keeps another out; `waves` of them make the grid.

    `warps` is the share of the warps that an SM has room for.
    """

    ctas_per_sm: int
    limit: str  # shared memory, threads, CTAs, registers
    warps: float
    waves: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def occupancy(launch: Launch, machine: Machine, registers: int | None = None, static_bytes: int = 0) -> Occupancy:
    """Of a launch whose entry has so many registers a thread, if that is known, and so many bytes of static memory.

    As NVIDIA's cuda_occupancy.h counts for compute capability 8.0 and later: warps in whole quarters of an SM,
    registers in units of 256 a warp, shared memory with what the system takes for each CTA.
    """
    warps = -(-launch.threads // WARP)
    shared = launch.shared_bytes + static_bytes + machine.reserved_shared_bytes
    limits = {
        "shared memory": machine.shared_bytes_per_sm // shared,
        "threads": machine.threads_per_sm // (WARP * warps),
        "CTAs": machine.ctas_per_sm,
    }
    if registers:
        a_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
        room = QUARTERS * (machine.registers_per_sm // QUARTERS // a_warp)
        limits["registers"] = room // (-(-warps // QUARTERS) * QUARTERS)
    limit = min(limits, key=limits.__getitem__)
    ctas = limits[limit]
    return Occupancy(
        ctas_per_sm=ctas,
        limit=limit,
        warps=ctas * warps * WARP / machine.threads_per_sm,
        waves=launch.ctas / (ctas * machine.sms) if ctas else float("inf"),
    )
