"""A short calibration on the real chip: everything is measured, and nothing is beyond what the chip can be."""

import pytest

from lab.gpu import device
from lab.record import provenance
from sim.errors import NoDeviceError


def test_a_short_calibration_is_possible() -> None:
    try:
        device.require_device()
    except NoDeviceError as reason:
        pytest.skip(str(reason))
    from lab.gpu.calibrate import calibrate

    machine = device.machine()
    (*_, last) = calibrate(machine, provenance(), lambda: None, sizes=(2**22, 2**28), rounds=3)
    found = last.calibration
    found.require_sound("it")
    if machine.max_cluster > 1:
        assert {*found.not_measured} <= {"sm_clock_mhz.mma", "peer_bytes_per_s"}
    for reads in found.reads.values():
        assert all(read.bytes_per_s < machine.hbm_bandwidth for read in reads or ())
    assert found.l2_rate
    assert found.l2_rate > machine.hbm_bandwidth
    assert found.l2_bytes
    assert found.l2_bytes.value == machine.l2_bytes
    for ctas, figure in (found.clusters_at_once or {}).items():
        assert int(ctas) * figure.value <= machine.sms
