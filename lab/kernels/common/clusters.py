"""How many clusters an H100 runs at the same time."""

from sim.machine import Machine

GPCS = (18, 18, 18, 16, 16, 16, 16, 14)  # SMs; 32 clusters of four took two waves, and 15 of eight are known to fit


def at_once(cluster: int, ctas_per_sm: int, machine: Machine) -> int:
    """Clusters of `cluster` CTAs that are resident at once on the SMs of an H100; fewer SMs, fewer of them.

    A cluster lies in one GPC, its CTAs on SMs of their own: 64 clusters of four took two waves where SMs held two CTAs.
    The GPCs of a chip differ, and so do chips: these fit what one H100 showed.
    """
    fit = ctas_per_sm * sum(sms // cluster for sms in GPCS)
    return max(1, fit * machine.sms // sum(GPCS))
