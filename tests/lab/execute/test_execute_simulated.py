"""The runner on the simulated chip: a plan computes its problem, counts as theory says, and can be replayed."""

import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import catalog, compile
from lab.choice import best_guesses, choose
from lab.execute import capture, compiling, plan
from lab.execute.bound import host_bits
from lab.problems import Linear, Problem
from lab.problems.rmsnorm import RMSNorm
from lab.verify import compare
from sim.counts import disagreements
from sim.errors import InputError, KernelError, ScheduleError
from sim.machine import H100

PROBLEM = Linear(3, 40, 256)


def arrays_of(problem: Problem, seed: int = 0) -> dict[str, Any]:
    """Inputs, and outputs that nothing has been written to."""
    made = {name: np.full(operand.shape, 0xFFFF, operand.storage) for name, operand in problem.outputs.items()}
    return {**problem.draw(np.random.default_rng(seed)), **made}


def right(problem: Problem, arrays: dict[str, Any]) -> bool:
    expected = problem.reference({name: arrays[name] for name in problem.inputs})
    return compare(problem, expected, {name: arrays[name] for name in problem.outputs}).passed


@settings(max_examples=10)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 8), st.integers(0, 9))
def test_what_is_chosen_runs_and_counts_as_theory_says(m: int, n: int, k: int, seed: int) -> None:
    problem = Linear(m, 8 * n, 8 * k)
    found = plan(problem, H100)
    assert (found.kernel, found.schedule, found.launches) == choose(problem, H100)
    arrays = arrays_of(problem, seed)
    assert disagreements(found.bind(arrays, device=None).run(), found.theory) == {}
    assert right(problem, arrays)


def test_every_output_of_another_kind_of_problem_is_bound() -> None:
    problem = RMSNorm(5, 264, residual=True)
    arrays = arrays_of(problem)
    assert len(problem.outputs) == 2
    plan(problem, H100).bind(arrays, device=None).run()
    assert right(problem, arrays)


def test_a_kernel_or_a_schedule_may_be_named() -> None:
    kernel = catalog.get("gemv_vectorized")
    first, second, *_ = kernel.module.candidates(PROBLEM, H100)
    assert plan(PROBLEM, H100, kernel=kernel).schedule == first
    found = plan(PROBLEM, H100, second, kernel)
    assert (found.kernel.name, found.schedule) == ("gemv_vectorized", second)
    assert found.predicted_us("graph") > 0
    with pytest.raises(InputError, match="a schedule is one kernel's: name the kernel too"):
        plan(PROBLEM, H100, second)
    with pytest.raises((InputError, ScheduleError)):
        plan(Linear(1, 7, 9, "fp8"), H100, kernel=kernel)


def test_rebinding_moves_the_result() -> None:
    problem = Linear(3, 48, 512)
    bound = plan(problem, H100).bind({}, device=None)
    for seed in (1, 2):
        arrays = arrays_of(problem, seed)
        bound.bind({**arrays, "not of any launch": None}).run()
        assert right(problem, arrays)


def test_a_graph_keeps_what_it_captured_until_it_is_updated() -> None:
    bound = plan(PROBLEM, H100).bind(first := arrays_of(PROBLEM, 1), device=None)
    graph = capture(bound)
    bound.bind(second := arrays_of(PROBLEM, 2))
    counts = graph.replay()
    assert counts == bound.run()
    assert right(PROBLEM, first)
    second["y"][...] = 0xFFFF
    graph.replay()
    assert (second["y"] == 0xFFFF).all()
    graph.update()
    graph.replay()
    assert right(PROBLEM, second)


def test_a_graph_runs_its_launches_in_order() -> None:
    problem = Linear(2, 64, 64)
    arrays, last = arrays_of(problem, 1), arrays_of(problem, 2)
    steps = [plan(problem, H100).bind({**arrays, "y": arrays["y"]}, None)]
    steps.append(plan(problem, H100).bind({**last, "x": arrays["y"]}, None))
    counts = capture(*steps).replay()
    assert counts.flops == 2 * problem.flops
    assert right(problem, arrays)
    assert right(problem, {**last, "x": arrays["y"]})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"x": [1.0]}, "x must be a NumPy array on the simulated chip; it is builtins.list"),
        ({"x": np.zeros((3, 255), np.uint16)}, "x must hold 1,536 B in elements of 2 B; it holds 1,530 B in uint16"),
        ({"x": np.zeros((3, 128), np.float32)}, "x must hold 1,536 B in elements of 2 B; it holds 1,536 B in float32"),
        ({"x": np.zeros((256, 3), np.uint16).T}, "x must be dense and row-major"),
        ({"y": np.broadcast_to(np.uint16(0), (1,)).repeat(120)[:].reshape(3, 40)}, ""),
    ],
)
def test_arrays_that_a_launch_does_not_describe_are_refused(changes: dict[str, Any], sentence: str) -> None:
    arrays = {**arrays_of(PROBLEM), **changes}
    if not sentence:
        arrays["y"].flags.writeable = False
        sentence = "y is read-only"
    with pytest.raises(InputError, match=sentence):
        plan(PROBLEM, H100).bind(arrays, device=None)


def test_inputs_may_be_read_only() -> None:
    described = plan(PROBLEM, H100).launches[0].arrays
    (x,) = (array for array in described if array.name == "x")
    for values in (np.arange(768, dtype=np.uint16), np.arange(768, dtype=np.uint16).view(ml_dtypes.bfloat16)):
        values.flags.writeable = False
        bits = host_bits(values, x)
        expected, gone = values.view(np.uint16).copy(), weakref.ref(values)
        assert np.shares_memory(bits, values)
        del values
        assert gone() is not None  # the bits keep it
        assert bits.flags.writeable  # so that Numba sees one type of array
        assert np.array_equal(bits.reshape(-1), expected)


def test_what_was_never_bound_is_named() -> None:
    arrays = arrays_of(PROBLEM)
    del arrays["w"], arrays["y"]
    bound = plan(PROBLEM, H100).bind(arrays, device=None)
    for call in (bound.run, lambda: capture(bound)):
        with pytest.raises(InputError, match="no array was bound for w, y"):
            call()
    with pytest.raises(InputError, match="there is nothing to capture"):
        capture()


def test_where_a_kernel_does_not_compile_the_next_best_guess_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = sorted(best_guesses(PROBLEM, H100), key=lambda guess: guess.us)
    broken = {first.kernel.name}

    def compile_launch(launch: Any, machine: Any) -> None:  # noqa: ARG001
        if launch.kernel in broken:
            raise KernelError(f"{launch.kernel} spills")

    monkeypatch.setattr(compile, "compile_launch", compile_launch)
    asked = plan(PROBLEM, H100, kernel=second.kernel)
    assert compiling(asked) is asked
    asked = plan(PROBLEM, H100, kernel=first.kernel)
    with pytest.warns(UserWarning, match=f"{second.kernel.name} takes the place of {first.kernel.name}: .* spills"):
        assert compiling(asked).launches == second.launches
    broken |= {guess.kernel.name for guess in best_guesses(PROBLEM, H100)}
    with pytest.raises(KernelError, match=f"{first.kernel.name} spills"):
        compiling(asked)
