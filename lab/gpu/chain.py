"""A chain of linear layers, the output of each the input of the next: what launches that overlap are worth."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cupy
import numpy as np

from lab.gpu import driver
from lab.gpu.bench import compile_ahead
from lab.gpu.ceilings import read_contestants
from lab.gpu.launch import Prepared, device_workspaces
from lab.gpu.search import SEARCH_ROUNDS, SEARCH_SAMPLE_US, best
from lab.gpu.timing import Clock, Contestant, Timing, measure
from lab.kernel import Kernel
from lab.problems import Problem
from sim.errors import EnvironmentFailure, InputError, KernelError
from sim.machine import Machine

DEPENDENT, PLAIN, READ = "dependent", "plain", "read"
MOST_RACED = 2  # schedules of a kernel, after a short race


@dataclass(frozen=True)
class Chain:
    """Arrays of a chain: weights of each layer, and activations before the first and behind each layer."""

    problem: Problem
    weights: tuple[dict[str, Any], ...]
    activations: tuple[Any, ...]

    @property
    def weight_bytes(self) -> int:
        return len(self.weights) * self.problem.bytes["weights"]


def chain_of(problem: Problem, layers: int, seed: int = 0) -> Chain:
    """Random layers on the device; raises InputError where a layer's output is no input of the next."""
    (name, takes), gives = next(iter(problem.inputs.items())), next(iter(problem.outputs.values()))
    if takes != gives:
        raise InputError(
            f"a chain's layers take what they give; these take {list(takes.shape)} in {takes.format} and give "
            f"{list(gives.shape)} in {gives.format}"
        )
    drawn = problem.draw(np.random.default_rng(seed))
    first = cupy.asarray(drawn.pop(name))
    weights = [{name: cupy.asarray(array) for name, array in drawn.items()}]
    for layer in range(1, layers):  # other weights at little cost: the first layer's rows, turned
        weights.append({name: cupy.roll(array, layer, axis=0) for name, array in weights[0].items()})
    hidden = [cupy.zeros(gives.shape, gives.storage) for _ in range(layers)]
    return Chain(problem, tuple(weights), (first, *hidden))


Peers = dict[str, Callable[[Chain], Callable[[], None]]]  # make a call that runs the whole chain


def race(chain: Chain, kernel: Kernel, schedule: Any, machine: Machine, peers: Peers, rounds: int) -> dict[str, Timing]:
    """Times of the whole chain in a graph: launches that overlap, plain ones, peers, a plain read of all weights.

    Raises EnvironmentFailure where overlapping launches change a single bit of the result.
    """
    with cupy.cuda.Stream(non_blocking=True) as stream:
        calls = {name: _call(chain, kernel, schedule, machine, name == DEPENDENT) for name in (DEPENDENT, PLAIN)}
        results = []
        for call in calls.values():
            for hidden in chain.activations[1:]:
                hidden.view(np.uint8)[...] = 0xFF
            call()
            driver.synchronize(stream.ptr)
            results.append([hidden.get() for hidden in chain.activations[1:]])
        if not all(np.array_equal(*pair) for pair in zip(*results, strict=True)):
            raise EnvironmentFailure(f"{kernel.name}: launches that overlap give another result than plain ones")
        contestants = [Contestant(name, (call,)) for name, call in calls.items()]
        contestants += [Contestant(name, (peer(chain),)) for name, peer in peers.items()]
        readers = read_contestants(chain.weight_bytes, 1)
        timings = measure([*contestants, *readers], Clock.CHAIN, rounds)
    best = min((timings[reader.name] for reader in readers), key=lambda timing: timing.us)
    return {name: timings[name] for name in [c.name for c in contestants]} | {READ: best}


def fastest(chain: Chain, kernel: Kernel, schedules: Sequence[Any], machine: Machine) -> list[Any]:
    """The schedules worth a race: the best of all that compile, in a short one of launches that overlap, unchecked."""
    compile_ahead([kernel.launches(chain.problem, schedule, machine)[0] for schedule in schedules], machine)
    with cupy.cuda.Stream(non_blocking=True):
        able = {}
        for schedule in schedules:
            with suppress(KernelError):  # a schedule that spills is out of the race
                able[schedule] = Contestant(str(schedule), (_call(chain, kernel, schedule, machine, dependent=True),))
        timings = measure(list(able.values()), Clock.CHAIN, SEARCH_ROUNDS, sample_us=SEARCH_SAMPLE_US) if able else {}
    return best({schedule: timings[one.name].us for schedule, one in able.items()}, MOST_RACED)


def _call(chain: Chain, kernel: Kernel, schedule: Any, machine: Machine, dependent: bool) -> Callable[[], None]:
    launches = kernel.launches(chain.problem, schedule, machine)
    launches = tuple(replace(launch, dependent=launch.dependent and dependent) for launch in launches)
    scratch = device_workspaces(launches)
    layers = []
    taken, given = next(iter(chain.problem.inputs)), next(iter(chain.problem.outputs))
    for i, weights in enumerate(chain.weights):
        arrays = {**weights, **scratch, taken: chain.activations[i], given: chain.activations[i + 1]}
        prepared = Prepared(launches, machine)
        layers.append(prepared.bind({name: array.data.ptr for name, array in arrays.items()}))
    return partial(_run, layers, scratch)


def _run(layers: list[Prepared], scratch: Any) -> None:  # noqa: ARG001 (it must live as long as the call)
    for layer in layers:
        layer()
