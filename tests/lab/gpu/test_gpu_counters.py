"""What ncu prints becomes Counts; where there is no ncu, the lab says so."""

import pytest

from lab import catalog
from lab.gpu import counters
from lab.kernel import parse_schedule
from lab.problems import Linear
from sim.counts import SECTOR, Counts
from sim.errors import EnvironmentFailure
from sim.machine import H100

PRINTED = """==PROF== Connected to process 7 (/usr/bin/python3)
==PROF== Profiling "gemm_wgmma" - 0: 0%....50%....100% - 4 passes
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC",\
"dram__bytes_read.sum","l1tex__m_xbar2l1tex_read_bytes_mem_global_op_tma_ld.sum","launch__grid_size",\
"lts__t_sectors_srcunit_tex_op_read.sum","sm__ops_path_tensor_op_hgmma_src_bf16_dst_fp32_sparsity_off.sum",\
"sm__ops_path_tensor_op_hgmma_src_fp16_sparsity_off.sum"
"","","","","","","","","","","","byte","byte","","sector","",""
"0","7","python3","h","gemm_wgmma","1","7","(256, 1, 1)","(512, 1, 1)","0","9.0","150,912,000","1610612736","512",\
"27,218,750","137438953472","0"
"1","7","python3","h","gemm_wgmma_combine","1","7","(256, 1, 1)","(8, 1, 1)","0","9.0","1000","0","8","n/a","0","0"
"""


def test_rows_of_all_launches_are_read() -> None:
    first, second = counters.parse(PRINTED)
    assert first["dram__bytes_read.sum"] == 150_912_000
    assert second["launch__grid_size"] == 8
    assert "lts__t_sectors_srcunit_tex_op_read.sum" not in second


def test_metrics_become_counts_and_the_rest_is_not_counted() -> None:
    (first, _) = counters.parse(PRINTED)
    assert counters.counts_of(first) == Counts(
        mma_flops=2 * 4096**3,
        tma_load_bytes=1_610_612_736,
        hbm_read_bytes=150_912_000,
        l2_lookup_bytes=27_218_750 * SECTOR,
    )


def test_every_field_is_a_count() -> None:
    assert set(counters.FIELDS) <= set(Counts().as_dict())


@pytest.mark.parametrize("text", ["", "==ERROR== no kernels were profiled", "a,b,c\n1,2,3"])
def test_nothing_read_is_no_row(text: str) -> None:
    assert counters.parse(text) == []


def test_no_ncu_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    kernel, problem = catalog.get("gemv_vectorized"), Linear(1, 64, 256)
    with pytest.raises(EnvironmentFailure, match="ncu is not on PATH"):
        counters.read(kernel, problem, kernel.best_guess(problem, H100), H100)


def test_rows_go_to_the_launches_that_made_them(monkeypatch: pytest.MonkeyPatch) -> None:
    streamed, split = catalog.get("gemv_vectorized"), catalog.get("gemm_split_k")
    problem, halved = Linear(1, 64, 256), Linear(64, 256, 512)
    schedules = streamed.best_guess(problem, H100), parse_schedule(split, "split_k=2", halved, H100)
    subjects = [(streamed, problem, schedules[0]), (split, halved, schedules[1])]
    grids = [launch.ctas for kernel, *question in subjects for launch in kernel.launches(*question, H100)]
    rows = [{"launch__grid_size": float(ctas), "dram__bytes_read.sum": 10.0**at} for at, ctas in enumerate(grids)]
    monkeypatch.setattr(counters, "_profile", lambda *_: rows)
    first, second = counters.read_all(subjects, H100)
    assert first.counts.hbm_read_bytes == 1
    assert second.counts.hbm_read_bytes == sum(10**at for at in range(1, len(grids)))
    rows.pop()
    with pytest.raises(EnvironmentFailure, match="where the schedules have"):
        counters.read_all(subjects, H100)
