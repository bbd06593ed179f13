"""Pages between two pools: what moves, what it is predicted to take, and the push with its receiver in one launch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lab
from lab import catalog
from lab.emulation.mutants import judge_described
from lab.emulation.source import module_of, source_of
from lab.mutants import Verdict
from lab.problems import MODELS
from lab.problems.transfer import Transfer
from lab.verify import simulator, verify
from sim.errors import InputError
from sim.launch import Array
from sim.machine import H100, H200

PUSH, PAIR = catalog.get("push_rows"), Path(__file__).with_name("pair.cu")
ROWS, POOL, WORDS = 3, 5, 132  # the last request of a row is cut
ROOT = Path(lab.__file__).parents[1]


def launches(epochs: int = 1) -> list[lab.Launch]:
    """So many transfers, one after another, of other pages each, by the same flag."""
    rng = np.random.default_rng(0)
    target = lab.Out("target", (POOL, WORDS), "uint32")
    flag, arrived = lab.InOut("flag", np.zeros(1, np.uint32)), lab.InOut("arrived", np.zeros(1, np.uint32))
    return [
        lab.Launch(
            grid=4,
            block=64,
            args=(
                lab.In(f"from{epoch}", rng.permutation(POOL)[:ROWS].astype(np.int32)),
                lab.In(f"to{epoch}", rng.permutation(POOL)[:ROWS].astype(np.int32)),
                lab.In(f"epoch{epoch}", np.array([epoch], np.uint32)),
                lab.In(f"source{epoch}", rng.integers(0, 2**32, (POOL, WORDS), np.uint32)),
                target,
                flag,
                arrived,
                lab.Out(f"y{epoch}", (ROWS, WORDS), "uint32"),
                ROWS,
                4 * WORDS,
            ),
        )
        for epoch in range(1, epochs + 1)
    ]


def received(arrays: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, float]]:
    """What the receiver of each launch finds."""
    epochs = [name[5:] for name in arrays if name.startswith("epoch")]
    return {f"y{e}": (arrays[f"source{e}"][arrays[f"from{e}"]].astype(np.float64), 0.0) for e in epochs}


def test_a_sequence_moves_whole_pages_of_all_layers() -> None:
    model = MODELS["llama-3-8b"]
    prompt = Transfer.of(model, 1155, 64)
    assert prompt.moved_bytes == 19 * 64 * model.kv_bytes_per_token  # 1,155 tokens fill 18.05 pages
    assert Transfer.of(model, 8192, 64).moved_bytes == 8192 * model.kv_bytes_per_token
    assert Transfer.of(model, 1155, 64, layers=1).moved_bytes * model.layers == prompt.moved_bytes
    assert Transfer.of(replace(model, kv="fp8"), 8192, 64).moved_bytes == 8192 * model.kv_bytes_per_token // 2


def test_what_crosses_the_link_is_counted_by_the_arrays_at_the_other_end() -> None:
    problem = Transfer(6, 1024, pool=9)
    schedule = PUSH.best_guess(problem, H100)
    counted = verify(PUSH, problem, schedule, H100, simulator(PUSH, H100)).counted
    assert counted.peer_write_bytes == problem.moved_bytes + 32  # the sector of the flag
    assert counted.peer_read_bytes == 0
    (launch,) = PUSH.launches(problem, schedule, H100)
    own = tuple(replace(a, peer=False) if isinstance(a, Array) else a for a in launch.arguments)
    assert PUSH.module.simulate(replace(launch, arguments=own), problem.indices(), H100).peer_write_bytes is None


def test_a_push_takes_as_long_as_its_link_and_no_machine_without_links_has_one() -> None:
    problem = Transfer.of(MODELS["llama-3-8b"], 8192, 64)
    for schedule in PUSH.module.candidates(problem, H200):
        bills = PUSH.bills(problem, schedule, H200, "graph")
        assert bills.us > bills.parts["link"] > 1e6 * problem.moved_bytes / H200.peer_bandwidth
    with pytest.raises(InputError, match="has no links to other GPUs"):
        PUSH.bills(problem, schedule, replace(H200, name="alone", peer_bandwidth=None), "graph")


def test_a_pool_has_room_for_the_rows_that_are_moved() -> None:
    with pytest.raises(InputError, match="pool must be from 4"):
        Transfer(4, 8, pool=3)


def test_the_receiver_finds_every_row_when_it_sees_the_epoch(seeds: int) -> None:
    found = lab.emulate(PAIR, "pair", launches(2), [ROOT], seeds=seeds, reference=received, machine=H100)
    assert found.passed, found.hazards


def test_a_flag_that_is_no_epoch_lets_the_receiver_of_the_next_transfer_read_too_early() -> None:
    defines = {"ARRIVED(flag,epoch)": "(flag != 0)"}
    first = lab.emulate(PAIR, "pair", launches(1), [ROOT], defines, seeds=3, reference=received, machine=H100)
    assert first.passed
    found = lab.emulate(PAIR, "pair", launches(2), [ROOT], defines, seeds=3, reference=received, machine=H100)
    assert "race on global memory" in {hazard.kind for hazard in found.hazards}


def test_every_mutant_of_fence_count_and_flag_is_caught() -> None:
    module = module_of(source_of(PAIR, ROOT), ["pair"], [], [ROOT], {}, H100)
    judged = list(judge_described(module, "pair", launches(), H100, 3, received))
    order = [j for j in judged if j.family in ("fence", "barrier")]
    assert {j.change for j in order} >= {"drop fence.acq_rel.sys", "drop bar.sync", "relax ld.acquire.sys.global.u32"}
    uncaught = {j.change for j in order if j.verdict is not Verdict.CAUGHT}
    assert uncaught <= {"move fence.acq_rel.sys behind ld.global.u32"}  # of the epoch: it is before the flag still
    assert [j for j in judged if j.verdict is Verdict.MISSED] == []
