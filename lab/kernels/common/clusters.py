"""How many clusters a chip runs at the same time."""

from sim.machine import Machine


def at_once(cluster: int, ctas_per_sm: int, machine: Machine) -> int:
    """Clusters of `cluster` CTAs that are resident at once where an SM holds `ctas_per_sm` of their CTAs.

    A cluster lies in one GPC, its CTAs on SMs of their own.
    """
    return max(1, ctas_per_sm * sum(sms // cluster for sms in machine.gpcs))
