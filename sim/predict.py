"""Predicted time of a launch from its Counts: the largest of the bills it pays in parallel."""

from sim.counts import Counts
from sim.machine import Machine


def predict_us(counts: Counts, unit: str, machine: Machine, ctas: int) -> float:
    """Microseconds for `counts` on a machine, `unit` being the operand format of the arithmetic.

    Bills: HBM, L2 to SM, tensor cores, CUDA cores, launch. A grid with fewer CTAs than SMs gets only its share of every
    rate: an SM has too few loads in flight to draw more than its own part of HBM's.
    """
    share = min(1.0, ctas / machine.sms)
    hbm = ((counts.hbm_read_bytes or 0) + (counts.hbm_write_bytes or 0)) / (machine.hbm_bandwidth * share)
    l2 = ((counts.l2_to_sm_bytes or 0) / (machine.l2_bandwidth * share)) if machine.l2_bandwidth else 0.0
    arithmetic, rate = (
        (counts.mma_flops, machine.peak(unit)) if counts.mma_flops else (counts.flops, machine.peak("fp32"))
    )
    compute = (arithmetic or 0) / (rate * share)
    return max(hbm, l2, compute, machine.launch_us * 1e-6) * 1e6
