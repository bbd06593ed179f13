"""How CTAs fill a chip: an even grid's idle CTAs change neither results nor counts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import catalog
from lab.cards import Calibration, Measured, Run, user_path, write
from lab.check_ptx import check_ptx
from lab.kernel import generated_header
from lab.kernels.common.clusters import MOST, at_once, even, fullest, padded, resident
from lab.kernels.gemv import gemv_int4, gemv_split_k
from lab.problems import Linear
from sim.machine import H100, H200

EIGHT = replace(H100, sms=8, gpcs=(8,))


@given(st.integers(1, 1000), st.integers(1, 200))
def test_an_even_grid_adds_little_and_gives_every_sm_as_many(ctas: int, sms: int) -> None:
    found = even(ctas, replace(H100, sms=sms, gpcs=(sms,)))
    assert 0 <= found - ctas <= sms // 8
    if found > ctas:
        assert found in (sms, 2 * sms)
    elif ctas in range(sms - sms // 8, sms + 1):
        assert found == sms


@given(st.integers(0, 40_000), st.integers(1, MOST))
def test_an_sm_has_shared_memory_for_the_most_ctas_and_for_no_more(needed: int, most: int) -> None:
    taken = padded(needed, most, H200) + H200.reserved_shared_bytes
    assert taken >= padded(needed, 0, H200) + H200.reserved_shared_bytes == needed + H200.reserved_shared_bytes
    assert (most + 1) * taken > H200.shared_bytes_per_sm
    if most * (needed + H200.reserved_shared_bytes) <= H200.shared_bytes_per_sm:
        assert most * taken <= H200.shared_bytes_per_sm


@pytest.mark.parametrize(("kernel", "weights"), [("gemv_int4", "int4_g128"), ("gemv_vectorized", "fp8")])
def test_a_launch_that_holds_an_sm_to_its_share_asks_for_memory_and_runs_the_same_code(
    kernel: str, weights: str
) -> None:
    problem = Linear(1, 4096, 4096, weights)
    found = catalog.get(kernel)
    guess = found.best_guess(problem, H200)
    (free,), (held,) = (found.launches(problem, replace(guess, most=most), H200) for most in (0, 3))
    assert 4 * (held.shared_bytes + H200.reserved_shared_bytes) > H200.shared_bytes_per_sm
    assert replace(held, shared_bytes=free.shared_bytes) == free
    assert generated_header(held, found.solves.facts) == generated_header(free, found.solves.facts)


def test_models_take_the_clusters_that_a_card_was_measured_to_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not measured is as described; CTAs of a cluster may share an SM that holds two."""
    monkeypatch.setenv("LAB_CONFIG_DIR", str(tmp_path))
    run = Run(time="2026-01-01T00:00:00+00:00", commit="c", dirty=False, command="a test", card="a card", driver="1")
    write(Calibration(machine="h100", runs={"r": run}, clusters_at_once={"6": Measured(17.0, "r")}), user_path("h100"))
    assert (resident(6, 1, H100), resident(6, 2, H100)) == (17, 42 * 17 // 19)
    assert at_once(6, 1, H100) == 19
    assert resident(7, 1, H100) == at_once(7, 1, H100)
    assert resident(7, 2, H100) == sum(2 * sms // 7 for sms in H100.gpcs) > at_once(7, 2, H100)


@pytest.mark.parametrize("name", ["gemm_cluster", "gemm_pingpong"])
def test_a_persistent_grid_has_no_cluster_that_would_wait_for_the_others(name: str) -> None:
    """31 of four have room in an H200's GPCs as described; the card was measured to hold 30."""
    kernel, problem = catalog.get(name), Linear(447, 17552, 4464)
    schedule = next(s for s in kernel.module.candidates(problem, H200) if s.cluster == 4)
    assert at_once(4, 1, H200) == 31
    assert [launch.ctas for launch in kernel.launches(problem, schedule, H200)] == [4 * 30]


@pytest.mark.parametrize(("cluster", "many", "full"), [(1, 132, 1), (1, 133, 2), (4, 30, 1), (4, 32, 2), (8, 15, 1)])
def test_the_fullest_sm_is_that_of_the_cluster_that_finds_no_empty_ones(cluster: int, many: int, full: int) -> None:
    """On an H200, whose GPCs have room for 30 clusters of four on SMs of their own: 12 SMs then stay empty."""
    assert fullest(cluster, many, 2, H200) == full
    assert fullest(cluster, many, 1, H200) == 1


@pytest.mark.parametrize(
    ("ctas_per_sm", "held"), [(1, (66, 39, 30, 22, 17, 15, 15)), (2, (132, 79, 62, 47, 39, 32, 30))]
)
def test_an_h200_held_about_as_many(ctas_per_sm: int, held: tuple[int, ...]) -> None:
    """As the driver reckoned there (cuOccupancyMaxActiveClusters), clusters of 2 to 8."""
    for cluster, many in zip(range(2, 9), held, strict=True):
        assert abs(resident(cluster, ctas_per_sm, H200) - many) <= 2


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        (gemv_int4.Schedule(8, 1, 2, 2, 1, 2, 1), Linear(1, 7 * 32 - 8, 512, "int4_g64")),
        (gemv_split_k.Schedule(8, 4, 512, 2, 1), Linear(1, 7 * 8 - 3, 520)),
    ],
    ids=lambda x: type(x).__module__.rpartition(".")[2],
)
def test_idle_ctas_leave_results_and_counts_alone(schedule: Any, problem: Linear) -> None:
    kernel = catalog.get(type(schedule).__module__.rpartition(".")[2])
    (launch,) = kernel.launches(problem, schedule, EIGHT)
    assert launch.ctas == 8 > -(-problem.n // schedule.block_n)
    found = check_ptx(kernel, problem, schedule, EIGHT, seeds=3)
    assert found.hazards == ()
    assert all(v.check.passed and v.disagreements == {} for v in found.verifications)
