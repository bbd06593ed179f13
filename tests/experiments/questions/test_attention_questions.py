"""The questions about attention: what is counted grows and shrinks as it must, and verdicts follow the numbers."""

from types import ModuleType

import pytest

import experiments
from experiments.lookup import question_of
from experiments.questions import attention_wrong_machine, flash_attention, kv_growth, kv_shrink, paged_kv
from experiments.questions.attention_runs import attention_of, hbm_bytes
from lab.record import Archive, Record
from tests.experiments.examples import NOTHING, SMALL, measured


def records_of(name: str) -> tuple[Record, ...]:
    return tuple(experiments.run(name, on="sim", machine="h200", **SMALL[name]).records)


def timed(records: tuple[Record, ...], us: list[float]) -> Archive:
    """As if a card had taken these times."""
    return Archive(tuple(measured(r, t, "cold") for r, t in zip(records, us, strict=True)))


def test_the_scores_are_quadratic_in_hbm_and_fused_attention_is_not() -> None:
    records = records_of("flash_attention")
    naive = [r for r in records if r.kernel == flash_attention.NAIVE]
    fused = [r for r in records if r.kernel != flash_attention.NAIVE]
    assert [attention_of(r).q_len for r in naive] == [attention_of(r).q_len for r in fused] == [64, 128, 256]
    for at, r in enumerate(naive):
        p = attention_of(r)
        assert hbm_bytes(r.theory) - hbm_bytes(fused[at].theory) >= 2 * p.q_heads * p.pairs  # written, and read again
    assert hbm_bytes(fused[2].theory) == 2 * hbm_bytes(fused[1].theory) == 4 * hbm_bytes(fused[0].theory)
    slow = timed(records, [2.0 if r.kernel == flash_attention.NAIVE else 1.0 for r in records])
    assert flash_attention.verdict(records, slow).passed is True
    assert flash_attention.verdict(records, timed(records, [1.0] * 6)).passed is False
    assert flash_attention.verdict(records, NOTHING).passed is None


def test_a_layer_grows_by_its_cache_alone() -> None:
    records = records_of("kv_growth")
    layers = kv_growth._layers(records)
    assert [layer.context for layer in layers] == [1024, 2048, 4096]
    assert len({layer.nbytes("weights") for layer in layers}) == 1
    assert layers[2].nbytes("kv") == 2 * layers[1].nbytes("kv") == 4 * layers[0].nbytes("kv")
    growing = [float(getattr(question_of(r), "kv_len", 1)) for r in records]
    assert kv_growth.verdict(records, timed(records, growing)).passed is True
    assert kv_growth.verdict(records, timed(records, [1.0] * len(records))).passed is False


def test_pages_must_cost_next_to_nothing() -> None:
    records = records_of("paged_kv")
    assert [attention_of(r).page for r in records] == [0, *paged_kv.PAGES]
    assert paged_kv.verdict(records, timed(records, [100, 200, 101, 100, 100])).passed is True  # a page of 1 may cost
    assert paged_kv.verdict(records, timed(records, [100, 100, 103, 100, 100])).passed is False


def test_times_shrink_as_the_cache_does() -> None:
    records = records_of("kv_shrink")
    sizes = [attention_of(r).kv_bytes for r in records]
    assert sizes[0] == 2 * sizes[1] == 4 * sizes[2] == 8 * sizes[3]
    assert kv_shrink.verdict(records, timed(records, [size / 1e3 for size in sizes])).passed is True
    assert kv_shrink.verdict(records, timed(records, [1.0] * len(sizes))).passed is False


def test_each_kernel_is_slower_on_the_others_ground() -> None:
    records = records_of("attention_wrong_machine")
    prompt, token, wide, one_by_one = records
    assert attention_of(one_by_one).pairs == attention_of(prompt).pairs  # the same answer, another way
    assert attention_of(one_by_one).kv_bytes == attention_of(prompt).kv_bytes
    assert attention_wrong_machine._issued(wide) > attention_wrong_machine._issued(token)
    assert attention_wrong_machine.verdict(records, timed(records, [1, 1, 2, 2])).passed is True
    assert attention_wrong_machine.verdict(records, timed(records, [1, 1, 2, 0.5])).passed is False


@pytest.mark.parametrize("module", [flash_attention, kv_growth, paged_kv, kv_shrink])
def test_pictures_show_what_was_predicted_and_what_was_measured(module: ModuleType) -> None:
    name = module.__name__.rpartition(".")[2]
    records = records_of(name)
    assert module.pictures(NOTHING) == {}
    for past, marks in (
        (Archive(records), {"predicted"}),
        (Archive((*records, *timed(records, [1.0] * len(records)).records)), {"measured"}),
    ):
        shown = {series.mark for chart in module.pictures(past).values() for series in chart.series}
        assert marks <= shown
