"""Machines hold together: GPCs are all of a chip's SMs, limits are what kernels rely on."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.errors import InputError
from sim.machine import H100, MACHINES, Machine, assumed_gpcs


@pytest.mark.parametrize("machine", MACHINES.values(), ids=lambda m: m.name)
def test_a_block_and_what_the_system_takes_for_it_fill_an_sm(machine: Machine) -> None:
    assert machine.shared_bytes_per_block + machine.reserved_shared_bytes == machine.shared_bytes_per_sm


@pytest.mark.parametrize(("cluster", "fit"), [(2, 66), (4, 31), (8, 15)])
def test_clusters_that_were_seen_to_fit_an_h100(cluster: int, fit: int) -> None:
    assert sum(sms // cluster for sms in H100.gpcs) == fit


@given(sms=st.integers(1, 400))
def test_assumed_gpcs_are_a_chip(sms: int) -> None:
    gpcs = assumed_gpcs(sms)
    assert sum(gpcs) == sms
    assert max(gpcs) <= 18
    assert max(gpcs) - min(gpcs) <= 3  # a TPC, or one and a half
    replace(H100, sms=sms, gpcs=gpcs)


@pytest.mark.parametrize("gpcs", [(66, 65), (14, 118), ()])
def test_gpcs_that_are_no_chip(gpcs: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"gpcs lists the SMs of each GPC, the largest first"):
        replace(H100, gpcs=gpcs)
