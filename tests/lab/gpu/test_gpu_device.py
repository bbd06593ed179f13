"""Which machine a card is, and what its bits mean."""

import json
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab.cards import Calibration, Measured, Read, Run, user_path, write
from lab.gpu import device, driver
from lab.gpu.device import Card, Conditions, machine_of, throttle_names
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
    ctas_per_sm=32,
    max_grid=(2**31 - 1, 65535, 65535),
    max_block_threads=1024,
    reserved_shared_bytes=1024,
    clusters=True,
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


PCIE = replace(CARD, name="NVIDIA H100 PCIe", sms=114, ctas_per_sm=24)


def test_an_unknown_card_has_the_limits_that_its_driver_reports_and_what_a_calibration_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAB_CONFIG_DIR", str(tmp_path))
    found = machine_of(PCIE)
    assert (found.ctas_per_sm, found.max_cluster, sum(found.gpcs)) == (24, 16, 114)
    assert machine_of(replace(PCIE, clusters=False)).max_cluster == 1
    assert (found.launch_us, found.l2_bandwidth) == (H100.launch_us, None)
    run = Run(time="now", commit="c", dirty=False, command="lab calibrate", card=PCIE.name, driver="580")
    launch = {"cold": None, "graph": Measured(0.9, "r"), "chain": None}
    l2_reads = (Read(2**20, 1.0, "read_l2", "r"), Read(2**21, 1.5, "read_l2", "r"))
    measured = Calibration(machine=found.name, runs={"r": run}, launch_us=launch, l2_reads=l2_reads)
    write(measured, user_path(found.name))
    assert machine_of(PCIE) == replace(
        found, launch_us=0.9, l2_bandwidth=2**21 / 1.5e-6, sources=machine_of(PCIE).sources
    )


def test_the_users_file_describes_a_card_that_nobody_else_knows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAB_CONFIG_DIR", str(tmp_path))
    told = machine_of(PCIE)
    filed = replace(told, peaks={"fp32": 51e12, "bf16": 756e12})
    path = tmp_path / "machines" / "nvidia-h100-pcie.json"
    path.parent.mkdir()
    path.write_text(json.dumps({field.name: getattr(filed, field.name) for field in fields(filed)}))
    assert machine_of(PCIE).peak("bf16") == 756e12
    assert machine_of(CARD) is H100


class FakeNvml:
    """As much of cuda.bindings.nvml as is asked; what `missing` names is not there."""

    ClockType = SimpleNamespace(CLOCK_SM=1, CLOCK_MEM=2)
    TemperatureSensors = SimpleNamespace(TEMPERATURE_GPU=0)

    class NvmlError(Exception):
        pass

    def __init__(self, missing: str = "") -> None:
        self.missing = missing

    def _value(self, name: str, handle: int, value: int) -> int:
        assert handle == 7
        if name == self.missing:
            raise self.NvmlError(name)
        return value

    def device_get_clock_info(self, handle: int, kind: int) -> int:
        return self._value(f"clock {kind}", handle, {1: 1980, 2: 2619}[kind])

    def device_get_power_usage(self, handle: int) -> int:
        return self._value("power", handle, 512_345)

    def device_get_temperature_v(self, handle: int, sensor: int) -> int:
        return self._value("temperature", handle, 51 + sensor)

    def device_get_current_clocks_event_reasons(self, handle: int) -> int:
        return self._value("reasons", handle, 0x5)


def test_conditions_are_nvmls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_nvml", lambda: (FakeNvml(), 7))
    assert device.conditions() == Conditions(1980, 2619, 512.345, 51, ("power cap",))
    for missing, field in (
        ("clock 1", "sm_clock"), ("clock 2", "memory_clock"), ("power", "power_w"),
        ("temperature", "temperature_c"), ("reasons", "throttle"),
    ):  # fmt: skip
        monkeypatch.setattr(device, "_nvml", lambda missing=missing: (FakeNvml(missing), 7))
        found = device.conditions()
        assert getattr(found, field) is None
        assert sum(getattr(found, f.name) is None for f in fields(found)) == 1
    monkeypatch.setattr(device, "_nvml", lambda: None)
    assert device.conditions() == Conditions()


def test_the_bindings_have_what_is_asked_of_them() -> None:
    nvml = pytest.importorskip("cuda.bindings.nvml")
    asked = [name for name in vars(FakeNvml) if name.startswith("device_")]
    asked += ["NvmlError", "init_v2", "device_get_handle_by_pci_bus_id_v2", "system_get_driver_version"]
    assert all(hasattr(nvml, name) for name in asked)
    assert (nvml.ClockType.CLOCK_SM, nvml.ClockType.CLOCK_MEM) == (1, 2)
    assert nvml.TemperatureSensors.TEMPERATURE_GPU == 0


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
