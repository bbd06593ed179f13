"""What the links between the GPUs of a host carry: measured where it was, else a share of the data sheet's."""

from lab.cards.files import calibration
from sim.errors import InputError
from sim.machine import Machine

# Of the data sheet's rate: "less than 380" GB/s of 450 are what a kernel of an H800 or H100 gets (DeepEP issue 16), 371
# to 377 what one copy between two H100 gets (NCCL issue 1264). Not measured by this project.
LINK_SHARE = 0.8


def link_rate(machine: Machine) -> float:
    """Bytes per second that one GPU writes to another, one way; raises InputError where it has no links."""
    measured = calibration(machine).peer_bytes_per_s
    if measured:
        return measured.value
    if not machine.peer_bandwidth:
        raise InputError(f"the {machine.title} has no links to other GPUs")
    return LINK_SHARE * machine.peer_bandwidth
