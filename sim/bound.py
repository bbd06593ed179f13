"""What bounds a launch's time by its Counts: the bills it pays in parallel, of which the largest is the bound."""

from sim.counts import Counts
from sim.machine import Machine


def bills_us(counts: Counts, unit: str, machine: Machine, ctas: int) -> dict[str, float]:
    """Microseconds of each bill for `counts` on a machine, `unit` being the operand format of the arithmetic.

    Bills: HBM, L2 to SM where its rate is known, tensor cores or CUDA cores. A grid with fewer CTAs than SMs gets only
    its share of every rate: an SM has too few loads in flight to draw more than its own part of HBM's.
    """
    share = min(1.0, ctas / machine.sms)
    bills = {
        "HBM": ((counts.hbm_read_bytes or 0) + (counts.hbm_write_bytes or 0)) / (machine.hbm_bandwidth * share) * 1e6
    }
    if machine.l2_bandwidth:
        bills["L2"] = (counts.l2_to_sm_bytes or 0) / (machine.l2_bandwidth * share) * 1e6
    if counts.mma_flops:
        bills["tensor cores"] = counts.mma_flops / (machine.peak(unit) * share) * 1e6
    else:
        bills["CUDA cores"] = (counts.flops or 0) / (machine.peak("fp32") * share) * 1e6
    return bills
