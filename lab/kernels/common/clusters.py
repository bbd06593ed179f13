"""How CTAs and clusters fill a chip."""

from lab.cards.files import calibration
from sim.machine import Machine

ALIGNED = 128  # bytes of shared memory
MOST = 16  # CTAs of an SM that a schedule may be held to


def at_once(cluster: int, ctas_per_sm: int, machine: Machine) -> int:
    """Clusters of `cluster` CTAs that are resident at once where an SM holds `ctas_per_sm` of their CTAs.

    A cluster lies in one GPC, its CTAs on SMs of their own.
    """
    return max(1, ctas_per_sm * sum(sms // cluster for sms in machine.gpcs))


def resident(cluster: int, ctas_per_sm: int, machine: Machine) -> int:
    """What models of time take for it: CTAs of a cluster may share an SM that holds several.

    Fewer than the machine's description says in the proportion in which the card was measured to hold fewer, one CTA
    an SM.
    """
    described = sum(ctas_per_sm * sms // cluster for sms in machine.gpcs)
    measured = (calibration(machine).clusters_at_once or {}).get(str(cluster))
    return max(1, described * int(measured.value) // at_once(cluster, 1, machine) if measured else described)


def fullest(cluster: int, many: int, ctas_per_sm: int, machine: Machine) -> int:
    """CTAs of the fullest SM where so many clusters run, as many as are resident at most.

    Clusters of four leave SMs without one that count for no other: the 33rd doubles up though a third of all are idle.
    """
    return min(ctas_per_sm, -(-many // resident(cluster, 1, machine)))


def even(ctas: int, machine: Machine) -> int:
    """CTAs of a grid that has so many with work, filled up where few more give every SM as many, or two, or one.

    Launches that overlap need it: an SM that has none of one launch would take two of the next, and be the last to end.
    """
    rounds = -(-ctas // machine.sms)
    spare = rounds * machine.sms - ctas
    return ctas + spare if rounds <= 2 and spare <= machine.sms // 8 else ctas


def padded(shared_bytes: int, most: int, machine: Machine) -> int:
    """Shared memory to ask for, where a CTA needs so much and an SM is to hold `most` at once; 0: as many as fit.

    Launches that overlap may need it: while others hold some SMs, a grid would pile up on the rest.
    """
    if not most:
        return shared_bytes
    least = machine.shared_bytes_per_sm // (most + 1) - machine.reserved_shared_bytes + 1
    return max(shared_bytes, -(-least // ALIGNED) * ALIGNED)
