"""A prompt's pages handed over without a kernel and with one: the rungs of a ladder, timed on the same arrays."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lab import catalog
from lab.cards import fits
from lab.cards.links import link_rate
from lab.execute import plan
from lab.inference.step_input import PAGE
from lab.problems import Model
from lab.problems.transfer import Transfer
from sim.errors import EnvironmentFailure
from sim.machine import Machine

ONE_BY_ONE, GRAPH, BATCH, PUSH, NCCL = (
    "copies one by one",
    "copies in a graph",
    "one batch of copies",
    "push_rows",
    "NCCL",
)
RUNGS = (ONE_BY_ONE, GRAPH, BATCH, PUSH, NCCL)
ONE_CARD = "NCCL sends from one GPU to another; both devices are the same one"


# Microseconds of a copy between two GPUs besides its bytes: 64 KiB took 17.5 each, called one by one, on two H200.
COPY_US = 17.3
NCCL_US = 28.0  # of a message of few bytes, likewise; its pages are gathered before and put in place after


def predicted_rungs(model: Model, machine: Machine, pages: int) -> dict[str, float]:
    """Microseconds that some rungs take for a prompt's pages, from what was measured of single copies and messages."""
    moved = pages * PAGE * model.kv_bytes_per_token
    over = 1e6 * moved / link_rate(machine)
    aside = 4 * 1e6 * moved / fits.read_rate(machine)  # read and written once more on each side
    return {ONE_BY_ONE: pages * model.layers * COPY_US + over, NCCL: NCCL_US + over + aside}


class Climbed(NamedTuple):
    """Microseconds of a rung and whether all pages arrived; or why it was not tried."""

    rung: str
    us: float | None
    right: bool
    why: str = ""


def climb(
    problem: Transfer, machine: Machine, devices: tuple[int, int], timed: Callable[..., float]
) -> Iterator[Climbed]:
    """Each rung on two pools; `timed` gives the median of microseconds of a call that enqueues work on a stream."""
    import cupy

    from lab.gpu.copies import Copies
    from lab.gpu.graph import CapturedGraph

    here, there = devices
    with cupy.cuda.Device(there):
        far: dict[str, Any] = {name: cupy.zeros(o.shape, o.storage) for name, o in problem.outputs.items()}
        cupy.cuda.Device().synchronize()
    with cupy.cuda.Device(here):
        tables = problem.indices()
        near: dict[str, Any] = {name: cupy.asarray(index) for name, index in tables.items()}
        near["source"] = cupy.random.randint(0, 2**15, problem.inputs["source"].shape, np.uint16)
        near["epoch"] = cupy.ones(1, np.int32)
        sent = cupy.asnumpy(near["source"][near["from_rows"]])
        stream = cupy.cuda.Stream(non_blocking=True)
        copies = Copies(far["target"], tables["to_rows"], near["source"], tables["from_rows"], here)
        bound = plan(problem, machine, kernel=catalog.get(PUSH)).bind(near | far, here)
        cupy.cuda.Device().synchronize()
    ways: dict[str, Callable[[], Any]] = {
        ONE_BY_ONE: partial(copies.one_by_one, stream.ptr),
        GRAPH: partial(CapturedGraph(copies.one_by_one, here).launch, stream.ptr),
        BATCH: partial(copies.batch, stream.ptr),
        PUSH: partial(bound.run, stream.ptr),
    }
    without = ONE_CARD
    if here != there:
        try:
            ways[NCCL] = _nccl(near, far, devices, stream)
        except (ImportError, RuntimeError) as error:  # RuntimeError: NCCL's own
            without = f"NCCL cannot be used: {error}"
    for rung in RUNGS:
        if rung not in ways:
            yield Climbed(rung, None, True, without)
            continue
        with cupy.cuda.Device(there):
            far["target"].fill(0)
            cupy.cuda.Device().synchronize()
        try:
            with cupy.cuda.Device(here):
                us = timed(ways[rung], stream)
        except EnvironmentFailure as error:
            yield Climbed(rung, None, True, str(error))
            continue
        with cupy.cuda.Device(there):
            cupy.cuda.Device().synchronize()
            came = cupy.asnumpy(far["target"])[tables["to_rows"]]
        yield Climbed(rung, us, bool((sent == came).all()))


def _nccl(near: dict[str, Any], far: dict[str, Any], devices: tuple[int, int], stream: Any) -> Callable[[], None]:
    """Pages gathered, sent as one message by NCCL, and put where they belong; the stream goes on when they are."""
    import cupy
    from cupy.cuda import nccl

    here, there = devices
    sender, receiver = nccl.NcclCommunicator.initAll(list(devices))
    rows = len(near["from_rows"]), near["source"].shape[1]
    with cupy.cuda.Device(here):
        out, gathered = cupy.empty(rows, np.uint16), cupy.cuda.Event()
    with cupy.cuda.Device(there):
        box, other = cupy.empty(rows, np.uint16), cupy.cuda.Stream(non_blocking=True)
        to_rows, arrived = cupy.asarray(cupy.asnumpy(near["to_rows"])), cupy.cuda.Event()
        cupy.cuda.Device().synchronize()
    nbytes = out.nbytes

    def send() -> None:
        with cupy.cuda.Device(here), stream:
            cupy.take(near["source"], near["from_rows"], axis=0, out=out)
            gathered.record(stream)
        nccl.groupStart()
        with cupy.cuda.Device(here):
            sender.send(out.data.ptr, nbytes, nccl.NCCL_UINT8, 1, stream.ptr)
        with cupy.cuda.Device(there):
            receiver.recv(box.data.ptr, nbytes, nccl.NCCL_UINT8, 0, other.ptr)
        nccl.groupEnd()
        with cupy.cuda.Device(there), other:
            far["target"][to_rows] = box
            arrived.record(other)
        with cupy.cuda.Device(here):
            stream.wait_event(arrived)

    return send
