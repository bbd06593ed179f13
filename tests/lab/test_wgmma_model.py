"""What the model of wgmma GEMMs says of a chip that is not full."""

from dataclasses import replace

import pytest

from lab import catalog
from lab.kernel import Bills
from lab.kernels.gemm.wgmma_model import power_cap
from lab.problems import Linear
from sim.machine import H200

KERNEL = catalog.get("gemm_cluster")


def bills(problem: Linear, **schedule: int) -> Bills:
    best = KERNEL.best_guess(Linear(4096, 4096, 4096), H200)
    return KERNEL.module.bills(problem, replace(best, **schedule), H200, "graph")


def test_the_cap_on_power_is_the_chips() -> None:
    """Tensor cores that work all the time meet it on all SMs, not on a third of them."""
    assert power_cap(100.0, 100.0, 1.0, 5.0, 0.5, 1.0) > power_cap(100.0, 100.0, 0.8, 5.0, 0.5, 1.0) > 0.0
    assert power_cap(100.0, 100.0, 0.3, 5.0, 0.5, 1.0) == 0.0
    tile = {"block_m": 128, "block_n": 256, "cluster": 1}
    assert bills(Linear(128, 256 * 12, 16384), **tile).parts["power cap"] == 0.0
    assert bills(Linear(128 * 11, 256 * 12, 16384), **tile).parts["power cap"] > 0.0


@pytest.mark.parametrize("tokens", [1, 32])
def test_rows_beyond_x_cost_less_where_few_sms_ask(tokens: int) -> None:
    """A tile of 128 rows for few tokens; 17 tiles of a second wave do not cost what the first 132 do."""
    tile = {"block_m": 128, "block_n": 96, "cluster": 1}
    few, one, more = (bills(Linear(tokens, 96 * tiles, 8192), **tile).us for tiles in (20, 132, 149))
    assert few < one < more < 1.8 * one
