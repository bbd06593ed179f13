"""The bars of attention: each part against what limits it."""

from dataclasses import replace

import msgspec
import pytest

from experiments.bars import attention_bars, attention_decode, attention_prefill
from experiments.bars.attention_decode import LARGE, SMALL, decode, latent, layer
from lab.problems import Attention
from lab.record import Archive, Record
from sim.errors import InputError
from tests.experiments.examples import NOTHING, timed

PROMPT = attention_prefill.PARTS["prefill"][0]
FEW_HEADS = attention_prefill.chunk(65536, 8, 1)


def cell(part: str, problem: Attention, us: float, read: float = 1e3, peer: float | None = None) -> list[Record]:
    """A timed problem with its plain read and a peer, all of one run."""
    known = {"machine": "h200", "clock": "cold", "metrics": {"bar": part}, "run": f"{part} {problem}"}
    ours = timed("attention_split_kv", us, problem=problem.as_dict(), schedule={"warps": 8}, **known)
    others = {"peer:read": read} | ({"peer:cudnn": peer} if peer else {})
    beside = [msgspec.structs.replace(ours, kernel=name, schedule=None, us=time) for name, time in others.items()]
    return [ours, *beside]


def gathered(problem: Attention, us: float) -> list[Record]:
    """The plain read through the block table, of the same run."""
    read = cell("paged", problem, us)[-1]
    return [msgspec.structs.replace(read, kernel="peer:gather", us=us)]


@pytest.mark.parametrize(
    ("records", "limit", "allowed"),
    [
        (cell("decode", LARGE, 510.0, read=490.0), "the read", 1.03 * 490 + 4),
        (cell("decode", LARGE, 500.0, peer=490.0), "peer:cudnn", 1.01 * 490),
        (cell("decode", decode(1, 2048), 9.5), "its own bar", 9.0),
        (cell("skewed", attention_decode.skewed(), 110.0, read=96.0), "the read", 1.07 * 96 + 4),
        (
            [*cell("paged", LARGE, 480.0), *cell("paged", replace(LARGE, page=16), 495.0)],
            "contiguous",
            1.02 * 480,
        ),
        ([*cell("paged", SMALL, 17.0), *cell("paged", replace(SMALL, page=64), 18.5)], "contiguous", 17 + 1.0),
        (
            cell("paged", replace(LARGE, page=1), 520.0) + gathered(replace(LARGE, page=1), 490.0),
            "the gather",
            1.05 * 490,
        ),
        (cell("mla", latent(64, 8192), 250.0), "its own bar", 1e6 * 2 * (576 + 512) * 128 * 64 * 8192 / 700e12 / 0.85),
        (cell("mla", latent(64, 8192, 16), 170.0, read=150.0), "the read", 1.10 * 150),
        (cell("mla", latent(64, 8192), 245.0, peer=240.0), "peer:cudnn", 240.0),
        ([*cell("fp8_kv", LARGE, 480.0), *cell("fp8_kv", replace(LARGE, kv="fp8"), 280.0)], "bf16", 480 / 1.8),
        ([*cell("queries", SMALL, 17.0), *cell("queries", replace(SMALL, q_len=4), 20.0)], "one token", 17 + 1.5),
        ([*cell("queries", LARGE, 480.0), *cell("queries", replace(LARGE, q_len=16), 560.0)], "one token", 1.12 * 480),
        (
            [*cell("planning", layer(64, 2048, uniform=True), 140.0), *cell("planning", layer(64, 2048, False), 141.0)],
            "no planning",
            140 + 2.0 / 32,
        ),
        (cell("prefill", PROMPT, 253.0, peer=250.0), "peer:cudnn", 250.0),
        (cell("chunk", FEW_HEADS, 255.0), "its own bar", FEW_HEADS.flops / 550e6),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_part_is_held_to_its_limit(records: list[Record], limit: str, allowed: float) -> None:
    last = attention_bars.cells(records)[-1]
    assert last.limits[limit] == pytest.approx(allowed)
    assert last.missed == pytest.approx({limit: (last.record.us or 0) / allowed})
    found = attention_bars.verdict(records, NOTHING)
    assert not found.passed
    assert f"times what {limit} allows" in found.sentence
    inside = msgspec.structs.replace(last.record, us=0.999 * allowed)
    assert not attention_bars.cells([inside if r is last.record else r for r in records])[-1].missed


def test_decode_is_held_to_its_peers_in_the_mean_of_all_cells() -> None:
    slow = [r for us, peer in ((400.0, 450.0), (20.0, 20.0)) for r in cell("decode", decode(8, int(us)), us, peer=peer)]
    found = attention_bars.verdict(slow, NOTHING)
    assert not found.passed
    assert "2 of 2 problems stand within their limits; the best peers take 1.061 times as long" in found.sentence
    fast = cell("decode", decode(8, 100), 400.0, peer=450.0)
    assert attention_bars.verdict(fast, NOTHING).passed


def test_parts_are_measured_together() -> None:
    assert attention_bars.Options(part="skewed+mla").parts == ["skewed", "mla"]
    with pytest.raises(InputError, match="or some of them joined by \\+; got 'all'"):
        attention_bars.Options(part="skewed+all")


def test_some_of_a_parts_problems_alone() -> None:
    found = attention_bars.Options(part="mla+planning", only="16 / 1 heads").problems
    assert found == [("mla", p) for p in attention_decode.PARTS["mla"] if p.q_heads == 16]
    with pytest.raises(InputError, match="no problem of part=decode has '17 / 1 heads' in its words"):
        attention_bars.Options(only="17 / 1 heads")


def test_the_table_has_each_problems_newest_run_and_says_what_is_missed() -> None:
    old, new = cell("decode", decode(1, 2048), 20.0), cell("decode", decode(1, 2048), 9.5, read=5.0, peer=19.0)
    old = [msgspec.structs.replace(one, run="old") for one in old]
    skew = cell("skewed", attention_decode.skewed(), 90.0, read=90.0)
    records = [msgspec.structs.replace(one, experiment="attention_bars") for one in (*old, *new, *skew)]
    rows, sources = attention_bars.table(Archive(tuple(records))).split("\n\n")
    lines = rows.splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| decode", "| skewed"]
    assert "9.5" in lines[0]
    assert "19 (cudnn) | 2.000 | the read + 3.8%, its own bar + 5.6%" in lines[0]
    assert "1 x 65,536 and 63 x 512" in lines[1]
    assert lines[1].endswith("met |")
    assert sources.startswith("Measured on")
