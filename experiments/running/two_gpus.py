"""What one GPU stores into another's memory: pushes of pages, and sums of two ranks in graphs, timed.

Both devices may be the same one: then nothing crosses a link, and only the code is proved.
"""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import msgspec
import numpy as np

from experiments.running.jobs import Work
from experiments.running.pair_on_device import watch
from experiments.running.tensor_parallel import CONTEXT, TwoRanks
from experiments.running.transfer_rungs import climb
from lab import catalog
from lab.cards import fits
from lab.cards.links import link_rate
from lab.inference.step_input import PAGE
from lab.problems import Model, Problem
from lab.problems.all_reduce import AllReduce
from lab.problems.transfer import Transfer
from lab.record import Checked, Record
from sim.errors import EnvironmentFailure, InputError
from sim.formats import decode

AT_ONCE = 20  # launches of a graph
PUSH = "push_rows"
EPOCHS, FEW_ROWS = 100, Transfer(64, 4096, pool=100)
WAIT_UNTIL_AT_LEAST = 0  # CU_STREAM_WAIT_VALUE_GEQ


class Pushing(Work, frozen=True, kw_only=True):
    """Prompts of a model, of so many tokens each, from one device's pool to another's; sums of so many rows.

    A `step` of two ranks, and `engines` of prompts and of answers at work.
    """

    model: dict[str, Any]
    tokens: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    devices: tuple[int, int] = (0, 1)
    rounds: int = 10
    step: bool = False
    engines: bool = False


def pushes(argument: Any) -> Iterator[Record]:
    """Records of each prompt, whole, one layer of it and by other ways, of each sum, and of the rest of a `Pushing`."""
    from lab.gpu import device
    from lab.inference.chip import gpu
    from lab.record import provenance

    asked = msgspec.convert(argument, Pushing)
    machine, cards = device.machine(), _cards(asked.devices)
    card = device.card()
    origin = {**provenance(), "on": "gpu", "machine": machine.name, "card": card.name, "driver": card.driver}
    same = asked.devices[0] == asked.devices[1]
    fields = dict(asked.model)
    fields.pop("kind", None)
    model = Model(**fields)
    for tokens in asked.tokens:
        for layers in (0, 1):
            problem = Transfer.of(model, tokens, PAGE, layers)
            us, right = _pushed(problem, machine, asked)
            facts = {"what": "push", "tokens": tokens, "layers": layers or model.layers, "same_card": same}
            facts["bytes_per_s"] = 1e6 * problem.moved_bytes / us
            yield _record(origin, asked, PUSH, problem, us, right, facts | {"cards": cards})
        yield from _rungs(origin, asked, Transfer.of(model, tokens, PAGE), machine, tokens, same, cards)
    if asked.tokens:
        us, right = _received(machine, asked)
        facts = {"what": "epochs", "times": EPOCHS, "same_card": same, "cards": cards}
        yield _record(origin, asked, PUSH, FEW_ROWS, us, right, facts)
    for rows in asked.rows:
        for name in ("all_reduce_one_shot", "all_reduce_flagged"):
            total = AllReduce(rows, model.d, model.unit)
            us, right = _summed(name, total, machine, asked)
            facts = {"what": "sum", "rows": rows, "rank_bytes": total.rank_bytes, "same_card": same, "cards": cards}
            yield _record(origin, asked, name, total, us, right, facts)
    if asked.step:
        ranks = TwoRanks(model, (gpu(machine, asked.devices[0]), gpu(machine, asked.devices[1])))
        timed = partial(_timed, rounds=asked.rounds)
        us = ranks.timed(timed)
        one, other = (decode(found, model.unit) for found in ranks.logits())
        share_us = ranks.share(timed)  # it leaves other logits
        facts = {"what": "step", "context": CONTEXT, "share_us": share_us, "same_card": same, "cards": cards}
        yield _record(origin, asked, None, model, us, bool(np.isfinite(one).all() and (one == other).all()), facts)
    if asked.engines:
        for figures in watch(model, asked.devices, machine.name):
            facts = {"what": "engines", "same_card": same, "cards": cards, **figures}
            yield _record(origin, asked, None, model, figures["prompts_us"], True, facts)


def _rungs(
    origin: dict[str, Any], asked: Pushing, problem: Transfer, machine: Any, tokens: int, same: bool, cards: str
) -> Iterator[Record]:
    """A prompt handed over by each way there is, beside the time that a link, or one card's memory, needs at least."""
    rate = fits.read_rate(machine) / 2 if same else link_rate(machine)
    least = {"bytes": problem.moved_bytes, "least_us": 1e6 * problem.moved_bytes / rate}
    for found in climb(problem, machine, asked.devices, partial(_timed, rounds=asked.rounds)):
        facts = {"what": "rung", "rung": found.rung, "tokens": tokens, "same_card": same, "cards": cards}
        facts |= least
        if found.us is None:
            facts["why"] = found.why
        else:
            facts["bytes_per_s"] = 1e6 * problem.moved_bytes / found.us
        kernel = PUSH if found.rung == PUSH else None
        yield _record(origin, asked, kernel, problem, found.us, found.right, facts)


def _record(
    origin: dict[str, Any],
    asked: Pushing,
    kernel: str | None,
    problem: Problem | Model,
    us: float | None,
    right: bool,
    facts: dict[str, Any],
) -> Record:
    return Record(
        **origin,
        experiment=asked.experiment,
        kernel=kernel,
        problem=problem.as_dict(),
        check=Checked(right, None),
        metrics={**facts, "us": us},
    )


def _cards(devices: tuple[int, int]) -> str:
    """The names of both, which can reach each other; raises InputError where there are not two."""
    import cupy

    from lab.gpu.shared import reach

    runtime = cupy.cuda.runtime
    have = runtime.getDeviceCount()
    if max(devices) >= have:
        raise InputError(f"two GPUs that reach each other are needed; this machine has {have}")
    for one, other in (devices, devices[::-1]):
        if not reach(one, other):
            raise EnvironmentFailure(f"GPU {one} cannot reach the memory of GPU {other}")
    return " and ".join(runtime.getDeviceProperties(d)["name"].decode() for d in dict.fromkeys(devices))


def _pushed(problem: Transfer, machine: Any, asked: Pushing) -> tuple[float, bool]:
    """Microseconds of a push in a graph of several, and whether its rows arrived."""
    import cupy

    from lab.execute import capture, plan

    here, there = asked.devices
    arrays: dict[str, Any] = {}
    with cupy.cuda.Device(there):
        arrays |= {name: cupy.zeros(o.shape, o.storage) for name, o in problem.outputs.items()}
        cupy.cuda.Device().synchronize()
    with cupy.cuda.Device(here):
        arrays |= {name: cupy.asarray(index) for name, index in problem.indices().items()}
        source = problem.inputs["source"]
        arrays["source"] = cupy.random.randint(0, 2**15, source.shape, np.uint16)
        arrays["epoch"] = cupy.ones(1, np.int32)
        bound = plan(problem, machine, kernel=catalog.get(PUSH)).bind(arrays, here)
        graph = capture(*[bound] * AT_ONCE)
        us = _timed(graph.replay, rounds=asked.rounds) / AT_ONCE
        sent = cupy.asnumpy(arrays["source"][arrays["from_rows"]])
    with cupy.cuda.Device(there):
        came = cupy.asnumpy(arrays["target"])[problem.indices()["to_rows"]]
        flag = int(arrays["flag"][0])
    return us, bool((sent == came).all()) and flag == 1


def _received(machine: Any, asked: Pushing) -> tuple[float, bool]:
    """Microseconds of a hand-over, one after another by a flag of epochs, and whether the receiver found its rows.

    Its stream waits for each epoch and then copies the rows, while the next ones are on their way to other places.
    """
    import cupy

    from lab.execute import capture, plan
    from lab.gpu import driver

    here, there = asked.devices
    problem, rng = FEW_ROWS, np.random.default_rng(0)
    tables = np.stack([rng.permutation(problem.places) for _ in range(2 * EPOCHS)]).astype(np.int32)
    with cupy.cuda.Device(there):
        receiver = cupy.cuda.Stream(non_blocking=True)
        arrays: dict[str, Any] = {name: cupy.zeros(o.shape, o.storage) for name, o in problem.outputs.items()}
        found = cupy.zeros((EPOCHS, problem.m, problem.n), np.uint16)
        to_rows = cupy.asarray(tables[EPOCHS:, : problem.m])
        taken = [cupy.cuda.Event() for _ in range(EPOCHS)]
        cupy.cuda.Device().synchronize()
    with cupy.cuda.Device(here):
        sender = cupy.cuda.Stream(non_blocking=True)
        arrays |= {name: cupy.zeros(o.shape, o.storage) for name, o in problem.inputs.items()}
        sources = cupy.random.randint(0, 2**15, (EPOCHS, *arrays["source"].shape), np.uint16)
        given = {
            "from_rows": cupy.asarray(tables[:EPOCHS, : problem.m]),
            "to_rows": cupy.asarray(tables[EPOCHS:, : problem.m]),
            "epoch": cupy.arange(1, EPOCHS + 1, dtype=np.int32).reshape(-1, 1),
            "source": sources,
        }
        graph = capture(plan(problem, machine, kernel=catalog.get(PUSH)).bind(arrays, here))
        cupy.cuda.Device().synchronize()
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record(sender)
    for i in range(EPOCHS):
        with cupy.cuda.Device(here), sender:
            if i:
                sender.wait_event(taken[i - 1])  # one transfer has one place at a time
            for name, value in given.items():
                arrays[name][...] = value[i]
            graph.replay(sender.ptr)
        with cupy.cuda.Device(there), receiver:
            flag = arrays["flag"].data.ptr
            driver.call_on(there, "cuStreamWaitValue32", receiver.ptr, flag, i + 1, WAIT_UNTIL_AT_LEAST)
            found[i] = arrays["target"][to_rows[i]]
            taken[i].record(receiver)
    with cupy.cuda.Device(here):
        end.record(sender)
        end.synchronize()
        us = 1e3 * cupy.cuda.get_elapsed_time(begin, end) / EPOCHS
        sent = [cupy.asnumpy(sources[i][given["from_rows"][i]]) for i in range(EPOCHS)]
    receiver.synchronize()
    return us, all((a == cupy.asnumpy(b)).all() for a, b in zip(sent, found, strict=True))


def _summed(name: str, problem: AllReduce, machine: Any, asked: Pushing) -> tuple[float, bool]:
    """Microseconds of a sum in a graph of several, and whether both ranks found it."""
    import cupy

    from lab.execute import capture, plan
    from lab.execute.device import DeviceBound

    kernel = catalog.get(name)
    schedule, given = kernel.best_guess(problem, machine), problem.draw(np.random.default_rng(0))
    here, there = asked.devices
    if here == there:
        with cupy.cuda.Device(here):
            x, y = cupy.asarray(given["x"]), cupy.zeros(given["x"].shape, np.uint16)
            bounds: list[Any] = [plan(problem, machine, schedule, kernel).bind({"x": x, "y": y}, here)]
        results = [y]
    else:
        launches = [kernel.module.rank_launch(problem, schedule, rank) for rank in (0, 1)]  # type: ignore[attr-defined]
        bounds, results = [], []
        for rank, gpu in enumerate(asked.devices):
            with cupy.cuda.Device(gpu):
                results.append(cupy.zeros((1, problem.m, problem.n), np.uint16))
                x = cupy.asarray(given["x"][rank : rank + 1])
                bounds.append(DeviceBound((launches[rank],), machine, gpu).bind({"x": x, "y": results[-1]}))
        for rank, bound in enumerate(bounds):  # each takes what is the other's from the other
            lent = {a.name: bounds[1 - rank].arrays[a.name] for a in launches[rank].arrays if a.peer}
            bound.bind(lent)
    graphs = [capture(*[bound] * AT_ONCE) for bound in bounds]
    streams = []
    for gpu in dict.fromkeys(asked.devices):
        with cupy.cuda.Device(gpu):
            streams.append(cupy.cuda.Stream(non_blocking=True))

    def replay() -> None:
        for gpu, graph, stream in zip(asked.devices, graphs, streams, strict=False):
            with cupy.cuda.Device(gpu):
                graph.replay(stream.ptr)

    us = _timed(replay, streams[0], asked.rounds) / AT_ONCE
    for stream in streams:
        stream.synchronize()
    expected = problem.reference(given)["y"]
    found = decode(np.concatenate([cupy.asnumpy(y) for y in results]), problem.activations)
    return us, bool((np.abs(found - expected.value) <= expected.error).all())


def _timed(run: Callable[[], Any], stream: Any = None, rounds: int = 1) -> float:
    """The median of microseconds of a call that enqueues work, by events of the stream that it goes to."""
    import cupy

    stream = stream or cupy.cuda.get_current_stream()
    run()
    took = []
    with cupy.cuda.Device(stream.device_id if stream.device_id >= 0 else cupy.cuda.Device().id):
        for _ in range(rounds):
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record(stream)
            run()
            end.record(stream)
            end.synchronize()
            took.append(1e3 * cupy.cuda.get_elapsed_time(begin, end))
    return median(took)
