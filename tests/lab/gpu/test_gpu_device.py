"""Which machine a card is, and what its bits mean."""

from dataclasses import replace

import pytest

from lab.gpu import device, driver
from lab.gpu.device import Card, machine_of, throttle_names
from sim.errors import InputError, NoDeviceError
from sim.machine import A100, B200, H100, H200, Machine
from tests.lab.gpu.fake_driver import FakeDriver

CARD = Card(
    name="NVIDIA H100 80GB HBM3",
    driver="580.159.04",
    capability=(9, 0),
    sms=132,
    hbm_bytes=84_929_937_408,
    hbm_bandwidth=3.352e12,
    l2_bytes=50 * 2**20,
    sm_clock_max=1980.0,
    memory_clock_max=2619.0,
    shared_bytes_per_block=227 * 1024,
    shared_bytes_per_sm=228 * 1024,
    registers_per_sm=65536,
    threads_per_sm=2048,
)


@pytest.mark.parametrize(
    ("name", "sms", "capability", "gib", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 132, (9, 0), 79.1, H100),
        ("NVIDIA H200", 132, (9, 0), 139.8, H200),
        ("NVIDIA A100-SXM4-40GB", 108, (8, 0), 39.4, A100),
        ("NVIDIA B200", 148, (10, 0), 178.4, B200),
    ],
)
def test_known_cards_are_known_machines(
    name: str, sms: int, capability: tuple[int, int], gib: float, expected: Machine
) -> None:
    card = replace(CARD, name=name, sms=sms, capability=capability, hbm_bytes=int(gib * 2**30))
    assert machine_of(card) is expected
    assert card.arch == expected.arch


@pytest.mark.parametrize(
    ("name", "sms", "gib"),
    [("NVIDIA H100 PCIe", 114, 79.6), ("NVIDIA GH200 480GB", 132, 95.0), ("NVIDIA A100-SXM4-80GB", 108, 79.2)],
)
def test_their_relatives_are_not(name: str, sms: int, gib: float) -> None:
    found = machine_of(replace(CARD, name=name, sms=sms, hbm_bytes=int(gib * 2**30)))
    assert (found.title, found.sms, found.hbm_bandwidth) == (name, sms, CARD.hbm_bandwidth)
    with pytest.raises(InputError, match="has no bf16 unit"):
        found.peak("bf16")


def test_a_consumer_card_is_a_machine_of_its_own() -> None:
    found = machine_of(replace(CARD, name="NVIDIA GeForce RTX 4090", sms=128, capability=(8, 9), sm_clock_max=2520.0))
    assert (found.name, found.arch) == ("nvidia-geforce-rtx-4090", "sm_89")
    assert found.peak("fp32") == pytest.approx(82.6e12, rel=0.01)  # its data sheet


def test_throttle_reasons_have_names() -> None:
    assert throttle_names(0x1) == ()  # idle
    assert throttle_names(0x4 | 0x20) == ("power cap", "software thermal")


def test_each_gpu_is_described_by_its_own_driver_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "api", lambda: FakeDriver(devices=2))
    card = device.card.__wrapped__  # what the driver says of this test is not kept
    assert [card(number).name for number in (0, 1)] == ["NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM4"]
    assert card(0).capability == (75, 76)  # the fake's attributes are their numbers
    assert card(0).hbm_bytes == 80 * 2**30
    for number in (-1, 2):
        with pytest.raises(NoDeviceError, match=f"can see 2 GPUs, numbered from 0; there is no GPU {number}"):
            card(number)
