"""Facts of the GEMM family that hold for no other kernel."""

from dataclasses import replace
from itertools import product

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import catalog
from lab.compile import compile_launch
from lab.kernel import Kernel
from lab.kernels.common import raster
from lab.kernels.gemm import wgmma_mainloop
from lab.problems import Linear
from sim.errors import InputError, ScheduleError
from sim.launch import TensorMap
from sim.machine import A100, H100, Machine
from tests.strategies import some

WGMMA = ("gemm_wgmma", "gemm_warp_specialized")


@given(
    m=st.integers(1, 900),
    n=st.integers(1, 900),
    block_m=st.sampled_from([64, 128, 256]),
    block_n=st.sampled_from([64, 192, 256]),
    group_m=st.integers(1, 20),
)
def test_the_raster_visits_every_tile_once(m: int, n: int, block_m: int, block_n: int, group_m: int) -> None:
    tiles = wgmma_mainloop.tile_count(Linear(m, n, 8), block_m, block_n)
    visited = [raster.tile_at(i, m, n, block_m, block_n, group_m) for i in range(tiles)]
    assert set(visited) == set(product(range(0, m, block_m), range(0, n, block_n)))
    assert len(visited) == len(set(visited))


def test_the_raster_walks_groups_of_tile_rows_column_by_column() -> None:
    visited = [raster.tile_at(i, 5 * 64, 2 * 64, 64, 64, 2) for i in range(10)]
    rows_and_columns = [(row // 64, column // 64) for row, column in visited]
    assert rows_and_columns == [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (3, 0), (2, 1), (3, 1), (4, 0), (4, 1)]


@pytest.mark.parametrize("name", WGMMA)
class TestWgmma:
    def kernel(self, name: str) -> Kernel:
        return catalog.get(name)

    def test_boxes_are_legal_for_tma_and_bring_what_the_barrier_expects(self, name: str) -> None:
        kernel, problem = self.kernel(name), Linear(300, 520, 136)
        for schedule in kernel.module.candidates(problem, H100):
            (launch,) = kernel.launches(problem, schedule, H100)
            maps = {a.name: a for a in launch.arguments if isinstance(a, TensorMap)}
            for tensor in maps.values():
                assert max(tensor.box) <= 256
                assert tensor.box[-1] * 2 == tensor.swizzle
                assert tensor.swizzle in ((32, 64, 128) if tensor.array == "y" else (128,))
                assert all(stride * 2 % 16 == 0 for stride in tensor.strides[:-1])
            loads = schedule.block_m // maps["x_map"].box[0] * maps["x_map"].box_bytes(2)
            loads += schedule.block_n // maps["w_map"].box[0] * maps["w_map"].box_bytes(2)
            assert loads == schedule.stage_bytes

    def test_a_perturbed_tile_changes_what_is_counted(self, name: str) -> None:
        kernel, problem = self.kernel(name), Linear(300, 520, 136)
        schedule = kernel.best_guess(problem, H100)
        (launch,) = kernel.launches(problem, schedule, H100)
        counts = kernel.module.simulate(launch, {}, H100)
        wrong = replace(schedule, block_n=64 if schedule.block_n != 64 else 128)
        perturbed = replace(launch, schedule=wrong)  # the same grid, another box
        assert kernel.module.simulate(perturbed, {}, H100).tma_load_bytes != counts.tma_load_bytes

    def test_counts_and_result_do_not_depend_on_the_number_of_threads(self, name: str) -> None:
        kernel, problem = self.kernel(name), Linear(300, 520, 136)
        (launch,) = kernel.launches(problem, kernel.best_guess(problem, H100), H100)
        inputs = problem.draw(np.random.default_rng(0))
        results = []
        for threads in (1, numba.config.NUMBA_NUM_THREADS):
            numba.set_num_threads(threads)
            y = np.zeros((problem.m, problem.n), np.uint16)
            counts = kernel.module.simulate(launch, {**inputs, "y": y}, H100)
            assert kernel.module.simulate(launch, {}, H100) == counts
            results.append((counts, y))
        assert results[0][0] == results[1][0]
        assert np.array_equal(results[0][1], results[1][1])

    @pytest.mark.parametrize("shape", [(8, 8, 12), (8, 12, 8), (8, 7, 8)])
    def test_rows_that_tma_cannot_address_are_refused(self, name: str, shape: tuple[int, int, int]) -> None:
        with pytest.raises(InputError, match="multiple of 8"):
            self.kernel(name).require(Linear(*shape))

    def test_a_ring_larger_than_shared_memory_is_refused_with_both_sides(self, name: str) -> None:
        kernel, problem = self.kernel(name), Linear(4096, 4096, 4096)
        schedule = replace(kernel.best_guess(problem, H100), stages=8)
        with pytest.raises(ScheduleError, match=r"8 stages.* need [\d,]+ B of shared memory; a block .* has 232,448 B"):
            schedule.fits(problem, H100)

    @pytest.mark.parametrize("m", [1, 7, 64])
    def test_few_rows_are_solved_too(self, name: str, m: int) -> None:
        kernel, problem = self.kernel(name), Linear(m, 4096, 4096)
        schedule = kernel.best_guess(problem, H100)
        (launch,) = kernel.launches(problem, schedule, H100)
        assert schedule.block_m <= 128
        assert kernel.module.simulate(launch, {}, H100).flops == problem.flops


def test_4096_cubed_loads_what_a_128_by_256_tile_loads() -> None:
    kernel, problem = catalog.get("gemm_wgmma"), Linear(4096, 4096, 4096)
    schedule = kernel.best_guess(problem, H100)
    assert (schedule.block_m, schedule.block_n) == (128, 256)
    counts = kernel.module.theory(problem, schedule, H100)
    assert counts.tma_load_bytes == counts.l2_to_sm_bytes == 1_610_612_736
    assert counts.mma_flops == counts.flops == 2 * 4096**3


class TestMmaSync:
    kernel = catalog.get("gemm_mma_sync")

    @pytest.mark.parametrize("machine", [H100, A100], ids=lambda machine: machine.name)
    def test_ampere_and_hopper_have_schedules_whose_ctas_share_an_sm_as_they_say(
        self, machine: Machine, every: bool
    ) -> None:
        problem = Linear(4096, 4096, 4096)
        found = list(self.kernel.module.candidates(problem, machine))
        assert len(found) >= 8
        for schedule in some(found, every):
            (launch,) = self.kernel.launches(problem, schedule, machine)
            used = compile_launch(launch, machine).resources[launch.entry]
            allocated = -(-used.registers // 8) * 8 * schedule.threads  # registers are dealt in eights
            assert schedule.ctas_per_sm * allocated <= machine.registers_per_sm

    def test_a_perturbed_step_changes_what_is_counted(self) -> None:
        problem = Linear(300, 520, 136)
        schedule = self.kernel.best_guess(problem, H100)
        (launch,) = self.kernel.launches(problem, schedule, H100)
        counts = self.kernel.module.simulate(launch, {}, H100)
        wrong = replace(schedule, block_k=96 - schedule.block_k)
        perturbed = replace(launch, schedule=wrong)  # the same grid, another k-step
        assert self.kernel.module.simulate(perturbed, {}, H100).global_load_sectors != counts.global_load_sectors

    @pytest.mark.parametrize(
        ("change", "sides"),
        [
            ({"warps_n": 1}, r"32 or 64 of block_n; 256 / 1 warps is 256"),
            ({"stages": 9}, r"9 stages need 442,368 B of shared memory; a block .* has 232,448 B"),
            ({"ctas_per_sm": 2}, r"2 CTAs need [\d,]+ B of shared memory; an SM .* has 233,472 B"),
            ({"ctas_per_sm": 2, "stages": 2}, r"512 threads .* need [\d,]+ registers; an SM .* has 65,536"),
            (
                {"block_m": 64, "warps_m": 2, "warps_n": 8, "block_k": 32},
                r"512 threads copy 128 rows at once; the tile",
            ),
        ],
    )
    def test_what_an_sm_cannot_hold_is_refused_with_both_sides(self, change: dict[str, int], sides: str) -> None:
        schedule = self.kernel.module.Schedule(128, 256, 64, 2, 4, 4, 1, 8)
        with pytest.raises(ScheduleError, match=sides):
            replace(schedule, **change).fits(Linear(4096, 4096, 4096), H100)

    def test_4096_cubed_loads_what_a_128_by_256_tile_loads(self) -> None:
        problem = Linear(4096, 4096, 4096)
        schedule = self.kernel.best_guess(problem, H100)
        assert (schedule.block_m, schedule.block_n) == (128, 256)
        counts = self.kernel.module.theory(problem, schedule, H100)
        assert counts.l2_to_sm_bytes == 32 * (counts.global_load_sectors or 0) == 1_610_612_736
        assert counts.mma_flops == counts.flops == 2 * 4096**3

    def test_it_is_predicted_to_be_slower_than_wgmma_where_the_tensor_cores_bind(self) -> None:
        problem = Linear(4096, 4096, 4096)

        def predicted(kernel: Kernel) -> float:
            schedule = kernel.best_guess(problem, H100)
            return kernel.predicted_us(problem, schedule, H100, "graph")

        assert predicted(self.kernel) > predicted(catalog.get("gemm_wgmma"))
