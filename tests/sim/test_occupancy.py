"""How many CTAs an SM holds: against the hardware's limits one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.launch import Launch
from sim.machine import A100, H100, Machine
from sim.occupancy import occupancy


def launch(threads: int, shared_bytes: int = 0, ctas: int = 132) -> Launch:
    return Launch("k", "k", None, None, (ctas, 1, 1), (threads, 1, 1), (), shared_bytes=shared_bytes)


@pytest.mark.parametrize(
    ("threads", "shared_bytes", "registers", "machine", "ctas", "limit"),
    [
        # As cuda_occupancy.h of CUDA 13 answers.
        (32, 0, 16, H100, 32, "CTAs"),
        (256, 0, 32, H100, 8, "threads"),
        (256, 0, 128, H100, 2, "registers"),
        (256, 0, 129, H100, 1, "registers"),  # in units of eight a thread
        (96, 0, 255, H100, 2, "registers"),  # three warps take the room of four
        (384, 198_656, 168, H100, 1, "shared memory"),
        (128, 56 * 1024, 32, H100, 4, "shared memory"),  # and 1,024 B each for the system
        (128, 57 * 1024, 32, H100, 3, "shared memory"),
        (128, 81 * 1024, 32, A100, 2, "shared memory"),
    ],
)
def test_the_scarcest_resource_limits_it(
    threads: int, shared_bytes: int, registers: int, machine: Machine, ctas: int, limit: str
) -> None:
    found = occupancy(launch(threads, shared_bytes), machine, registers)
    assert (found.ctas_per_sm, found.limit) == (ctas, limit)
    assert found.warps == ctas * -(-threads // 32) * 32 / machine.threads_per_sm


@given(threads=st.integers(1, 1024), shared=st.integers(0, 227 * 1024), registers=st.integers(1, 64))
def test_what_is_resident_fits_and_one_more_would_not(threads: int, shared: int, registers: int) -> None:
    found = occupancy(launch(threads, shared), H100, registers)

    def fits(ctas: int) -> bool:
        warps = -(-threads // 32)
        a_warp = -(-registers * 32 // 256) * 256
        quarter = -(-warps // 4)  # a quarter's part of each CTA, at most
        return (
            ctas <= 32
            and ctas * warps * 32 <= H100.threads_per_sm
            and ctas * (shared + 1024) <= H100.shared_bytes_per_sm
            and ctas * quarter * a_warp <= H100.registers_per_sm // 4
        )

    assert fits(found.ctas_per_sm)
    assert not fits(found.ctas_per_sm + 1)
    assert found.waves == 132 / (found.ctas_per_sm * H100.sms)


def test_without_registers_they_are_no_limit() -> None:
    assert occupancy(launch(256), H100).ctas_per_sm == 8
    assert occupancy(launch(256, 0), H100, static_bytes=100_000).ctas_per_sm == 2
