"""The bars of decode: layer by layer against the read, the peers and more tokens, and a chain against its bytes."""

import msgspec
import pytest

import experiments
from experiments.bars import decode_bars, decode_chain
from experiments.bars.decode_bars import Options
from experiments.lookup import layer_of
from experiments.running.formats import in_format
from lab.problems import Linear
from lab.record import Archive, Record, provenance
from sim.errors import InputError
from sim.machine import H200
from tests.experiments.examples import NOTHING, measured, timed


def cell(m: int, us: float, read: float, peer: float, part: str = "bf16") -> list[Record]:
    """A timed layer with its plain read and a peer, all of one run."""
    problem = in_format(part, Linear(m, 8192, 8192)).as_dict()
    like = Record(
        **{**provenance(), "run": f"{part} {m}"},
        on="gpu",
        machine="h100",
        problem=problem,
        clock="graph",
        metrics={"bar": part},
    )
    schedule: dict[str, int | str] = {"rows": 1}
    return [
        msgspec.structs.replace(like, kernel="gemv_mma", schedule=schedule, us=us, samples_us=[us]),
        msgspec.structs.replace(like, kernel="peer:read", us=read, samples_us=[read]),
        msgspec.structs.replace(like, kernel="peer:cublas", us=peer, samples_us=[peer]),
    ]


def test_decode_is_held_to_the_read_the_peers_and_more_tokens() -> None:
    good = [*cell(1, 44.5, 43.3, 47.0), *cell(16, 44.8, 43.3, 47.5), *cell(64, 47.0, 43.3, 47.0)]
    assert decode_bars.verdict(good, NOTHING).passed
    for bad, says in (
        (cell(8, 44.9, 43.3, 47.0), "takes 1.002 times what the read allows"),
        (cell(8, 44.8, 43.3, 44.0), "takes 1.018 times what peer:cublas allows"),
        (cell(128, 50.0, 43.3, 48.0), "takes 1.042 times what peer:cublas allows"),
    ):
        found = decode_bars.verdict(good + bad, NOTHING)
        assert not found.passed
        assert (
            f"3 of 4 layers stand within their limits; the farthest, bf16, m = {layer_of(bad[0]).m}" in found.sentence
        )
        assert says in found.sentence
    cliff = decode_bars.verdict([*cell(32, 46.0, 43.3, 60.0), *cell(64, 43.0, 43.3, 60.0)], NOTHING)
    assert not cliff.passed
    assert "1 take longer than with more tokens" in cliff.sentence


def test_batches_are_those_asked_for_the_most_tokens_first() -> None:
    asked = Options(part="bf16", shape=1, least=8, most=32).problems
    assert [(p.m, p.n) for _, p in asked] == [(32, 8192), (16, 8192), (8, 8192)]
    with pytest.raises(InputError, match=r"batches are 1, 2, .*, 128; none is from 3 to 3"):
        Options(least=3, most=3)


def test_a_chain_is_held_to_its_bytes_at_the_read_rate() -> None:
    record = experiments.run("decode_chain", d=256).records[0]
    read = {"experiment": "ceilings", "metrics": {"what": "read", "nbytes": 2**31, "bytes_per_s": 3.0e12}}
    past = Archive((timed("", 1.0, schedule={}, **read), timed("", 1.0, schedule={}, machine="h200", **read)))
    floor = 8 * 2 * 256 * 256 / 3.0e12 * 1e6
    for times, passed in ((1.03, True), (1.05, False)):
        facts = {"layers": 8, "launches": "dependent"}
        chain = msgspec.structs.replace(measured(record, times * floor, "chain"), metrics=facts)
        plain = msgspec.structs.replace(chain, us=9 * floor, metrics={"layers": 8, "launches": "plain"})
        found = decode_chain.verdict([chain, plain], past)
        assert found.passed == passed
        assert f"at 3.00 TB/s, bf16 takes {times:.3f} (bar 1.04)" in found.sentence
    unknown = decode_chain.verdict([chain, plain], NOTHING)
    assert (unknown.passed, "has not been measured here" in unknown.sentence) == (False, True)


def test_a_chain_tries_both_times_at_which_the_launch_behind_may_begin() -> None:
    (problem,) = [p for p in decode_chain.Options().problems if p.weights == "bf16"]
    tried = dict(decode_chain._overlapping(problem, H200, 3))
    assert {"gemv_vectorized", "gemv_split_k"} <= tried.keys()
    del tried["gemv_split_k"]  # which knows one time
    for words in tried.values():
        early, late = ([w for w in words if f"late={at}" in w] for at in (0, 1))
        assert [w.replace("late=0", "late=1") for w in early] == late != []


def test_decode_shows_each_layer_beside_the_read_and_the_best_peer() -> None:
    def layer(m: int, us: float, run: str) -> list[Record]:
        problem = Linear(m, 8192, 8192, "int4_g128").as_dict()
        shared = {"problem": problem, "experiment": "decode_bars", "run": run, "clock": "graph"}
        shared["metrics"] = {"bar": "int4_g128"}
        return [
            timed("gemv_int4", us, **shared),
            timed("peer:read", 12.4, schedule=None, **shared),
            timed("peer:humming", 18.2, schedule=None, **shared),
        ]

    past = Archive((*layer(1, 20.0, "old"), *layer(1, 14.0, "new"), *layer(16, 16.0, "other")))
    text = decode_bars.table(past)
    assert "| int4_g128 | 8,192 x 8,192 | 12.40 | 14.00 (18.2) | - | - | - | 16.00* (18.2) |" in text
    assert "- int4_g128: 1 of 2 layers stand within their limits" in text
    assert "No records yet" in decode_bars.table(Archive(()))
