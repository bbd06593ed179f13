"""Machines, counts and the roofline."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.problems import Linear
from sim.bound import bills_us
from sim.counts import SECTOR, Counts, box_sectors, row_sectors, sectors
from sim.errors import InputError
from sim.machine import MACHINES, machine
from sim.roofline import roofline


def test_the_articles_ridges() -> None:
    assert round(machine("a100").ridge("fp32")) == 13
    assert round(machine("a100").ridge("bf16"), -1) == 200
    assert round(machine("h100").ridge("bf16")) == 295


def test_the_ridge_does_not_climb_with_every_generation() -> None:
    assert machine("h200").ridge("bf16") < machine("h100").ridge("bf16")
    assert machine("b200").ridge("bf16") < machine("h100").ridge("bf16")


@pytest.mark.parametrize("name", MACHINES)
def test_every_machine_names_its_sources(name: str) -> None:
    chip = machine(name)
    assert chip.name == name
    assert chip.sources
    assert chip.shared_bytes_per_block <= chip.shared_bytes_per_sm


def test_unknown_machines_and_missing_units_are_refused() -> None:
    with pytest.raises(InputError, match="unknown machine 'v100'; known machines: a100, h100, h200, b200"):
        machine("v100")
    with pytest.raises(InputError, match="A100 SXM 40 GB has no fp8 unit; it has fp32, bf16, fp16"):
        machine("a100").peak("fp8")


@given(flops=st.floats(1, 1e18), nbytes=st.floats(1, 1e13))
def test_the_regime_is_the_larger_bill(flops: float, nbytes: float) -> None:
    point = roofline(flops, nbytes, "bf16", machine("h100"))
    if point.regime == "overhead":
        assert max(point.compute_us, point.memory_us) < point.launch_us
    else:
        assert (point.regime == "compute") == (point.compute_us > point.memory_us)
        assert point.floor_us == max(point.compute_us, point.memory_us)
    assert (point.intensity > point.ridge) == pytest.approx(point.compute_us > point.memory_us)


def test_the_two_machines() -> None:
    prefill, decode = Linear(2048, 4096, 4096), Linear(1, 4096, 4096)
    assert prefill.flops == 68_719_476_736
    assert prefill.weight_intensity == 2048
    assert decode.weight_intensity == 1
    assert prefill.bytes["weights"] == decode.bytes["weights"] == 2 * 4096 * 4096
    h100 = machine("h100")
    assert roofline(prefill.flops, prefill.bytes["total"], "bf16", h100).regime == "compute"
    assert roofline(decode.flops, decode.bytes["total"], "bf16", h100).regime == "memory"
    assert roofline(Linear(1, 64, 64).flops, Linear(1, 64, 64).bytes["total"], "bf16", h100).regime == "overhead"


@given(start=st.integers(0, 200), nbytes=st.integers(0, 300))
def test_sectors_are_those_that_hold_a_byte_of_the_range(start: int, nbytes: int) -> None:
    assert sectors(start, nbytes) == len({at // SECTOR for at in range(start, start + nbytes)})


@given(rows=st.integers(0, 50), row_bytes=st.integers(1, 200), start=st.integers(0, 64), nbytes=st.integers(0, 128))
def test_row_sectors_sums_over_rows(rows: int, row_bytes: int, start: int, nbytes: int) -> None:
    assert row_sectors(rows, row_bytes, start, nbytes) == sum(
        sectors(r * row_bytes + start, nbytes) for r in range(rows)
    )


@given(rows=st.integers(0, 50), row_bytes=st.integers(1, 700), box=st.sampled_from([32, 64, 96, 128]))
def test_box_sectors_sums_over_boxes_side_by_side(rows: int, row_bytes: int, box: int) -> None:
    assert box_sectors(rows, row_bytes, box) == sum(
        row_sectors(rows, row_bytes, at, min(box, row_bytes - at)) for at in range(0, row_bytes, box)
    )


def test_a_field_that_one_launch_does_not_count_is_not_counted_in_the_sum() -> None:
    total = Counts(flops=2, mma_flops=3) + Counts(flops=5)
    assert total.flops == 7
    assert total.mma_flops is None


def test_each_bill_is_paid_at_the_rate_of_the_sms_that_work() -> None:
    h100 = machine("h100")
    streamed = Counts(flops=10, mma_flops=0, hbm_read_bytes=3_350_000_000, hbm_write_bytes=0, l2_to_sm_bytes=0)
    assert bills_us(streamed, "bf16", h100, ctas=132)["HBM"] == pytest.approx(1000)
    assert bills_us(streamed, "bf16", h100, ctas=33)["HBM"] == pytest.approx(4000)
    dense = Counts(flops=1, mma_flops=989_400_000_000, hbm_read_bytes=0, hbm_write_bytes=0, l2_to_sm_bytes=0)
    assert bills_us(dense, "bf16", h100, ctas=132) == pytest.approx({"HBM": 0, "L2": 0, "tensor cores": 1000})
    assert bills_us(dense, "bf16", h100, ctas=66)["tensor cores"] == pytest.approx(2000)
    assert "L2" not in bills_us(streamed, "bf16", machine("b200"), ctas=132), "nobody says how fast it is"
