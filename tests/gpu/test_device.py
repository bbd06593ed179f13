"""The kernels on the real chip: right on ragged shapes and far offsets, on any stream, in graphs."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest

import lab
from lab import catalog
from lab.execute import capture, plan
from lab.gpu import device, worker
from lab.kernel import Kernel
from lab.problems import Linear
from lab.verify import guarded_array, guards_intact, verify
from sim import int4
from sim.errors import EnvironmentFailure, InputError
from sim.formats import decode, encode
from sim.launch import Array, Role
from sim.machine import Machine
from tests.strategies import compare_y, fitted, variants

LINEAR = [name for name in catalog.names() if catalog.get(name).solves.problem is Linear]
RAGGED = [(1, 1, 8), (1, 17, 264), (2, 100, 4096), (3, 129, 72), (7, 576, 1536), (65, 257, 520), (130, 300, 1000)]
DEADLINE_S = 40.0  # of a worker: time to import CuPy and start a kernel
SCHEDULES = 3  # of each kernel and shape
PIECE = 16_777_213  # elements of a random pattern: a prime, so that no wrapped offset meets the same values


def runnable(name: str, chip: Machine) -> Kernel:
    kernel = catalog.get(name)
    if not kernel.solves.runs_on(chip.arch):
        pytest.skip(f"{name} needs {kernel.solves.arch}")
    return kernel


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("shape", RAGGED, ids=lambda s: "x".join(map(str, s)))
def test_kernels_are_right_on_ragged_shapes(name: str, shape: tuple[int, int, int], chip: Machine) -> None:
    from lab.gpu.launch import executor

    kernel = runnable(name, chip)
    m, n, k = shape
    for form in variants(kernel):
        problem = fitted(kernel, replace(form, m=m, n=n + (form.swiglu and n % 2), k=k))
        for seed, schedule in enumerate(islice(kernel.module.candidates(problem, chip), SCHEDULES)):
            found = verify(kernel, problem, schedule, chip, executor(chip), seed)
            assert found.passed, (problem, schedule, found.check)


def test_guard_bands_catch_a_kernel_that_writes_too_far(chip: Machine) -> None:
    from lab.gpu.launch import executor

    kernel = runnable("gemv_vectorized", chip)
    problem = Linear(1, 72, 256)
    launches = kernel.launches(problem, kernel.best_guess(problem, chip), chip)
    whole, inside = guarded_array(Array("y", Role.OUT, (1, 64), problem.output))
    executor(chip)(launches, {**problem.draw(np.random.default_rng(1)), "y": inside})
    assert not guards_intact(whole)


def pattern(cupy: Any, shape: tuple[int, int], seed: int) -> Any:
    """bf16 bits of random values of magnitude 0.5 to 1, without a short period."""
    bits = cupy.random.RandomState(seed).randint(0, 2**16, size=PIECE, dtype=cupy.uint16)
    piece = (bits & cupy.uint16(0x807F)) | cupy.uint16(0x3F00)
    flat = cupy.empty(shape[0] * shape[1], cupy.uint16)
    for start in range(0, flat.size, PIECE):
        part = flat[start : start + PIECE]
        part[...] = piece[: part.size]
    return flat.reshape(shape)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("shape", [(1, 70_000, 32_768), (65_535, 8, 32_784), (65_535, 32_784, 64)], ids=["w", "x", "y"])
def test_offsets_beyond_2_31_elements(name: str, shape: tuple[int, int, int], chip: Machine, cupy: Any) -> None:
    kernel = runnable(name, chip)
    if "bf16" not in kernel.solves.formats:
        pytest.skip("the pattern is bf16")
    m, n, k = shape
    problem = fitted(kernel, Linear(m, n, k))
    m, n, k = problem.m, problem.n, problem.k
    assert max(m * k, n * k, m * n) > 2**31
    x, w = pattern(cupy, (m, k), 1), pattern(cupy, (n, k), 2)
    y = cupy.full((m, n), 0xFFFF, cupy.uint16)
    plan(problem, chip, kernel=kernel).bind({"x": x, "w": w, "y": y}).run()
    for rows in (slice(0, min(m, 8)), slice(max(0, m - 8), m)):
        for columns in (slice(0, min(n, 32)), slice(max(0, n - 32), n)):
            inputs = {"x": x[rows].get(), "w": w[columns].get()}
            part = Linear(inputs["x"].shape[0], inputs["w"].shape[0], k)
            assert compare_y(part, inputs, y[rows, columns].get()).passed
    assert not bool((y == 0xFFFF).any())
    cupy.get_default_memory_pool().free_all_blocks()


def operands(cupy: Any, problem: Linear, seed: int = 0) -> tuple[dict[str, Any], Any, Any]:
    inputs = problem.draw(np.random.default_rng(seed))
    return inputs, cupy.asarray(inputs["x"]), cupy.asarray(inputs["w"])


def test_streams_of_the_callers_own(cupy: Any) -> None:
    problem = Linear(2, 512, 1024)
    inputs, x, w = operands(cupy, problem)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        on_current = lab.linear(x, w)
        stream.synchronize()
    named = cupy.empty_like(on_current)
    other = cupy.cuda.Stream(non_blocking=True)
    assert lab.linear(x, w, out=named, stream=other.ptr) is named
    other.synchronize()
    for y in (on_current, named):
        assert compare_y(problem, inputs, y.get()).passed


def test_a_captured_graph_replays_on_new_data(cupy: Any) -> None:
    problem = Linear(1, 264, 776)  # a shape that nothing used before: it is compiled and loaded while captured
    inputs, x, w = operands(cupy, problem)
    y = cupy.full((1, 264), 0xFFFF, cupy.uint16)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        lab.linear(x, w, out=y)
        graph = stream.end_capture()
        for seed in (1, 2):
            inputs = problem.draw(np.random.default_rng(seed))
            x[...] = cupy.asarray(inputs["x"])
            w[...] = cupy.asarray(inputs["w"])
            graph.launch(stream)
            stream.synchronize()
            assert compare_y(problem, inputs, y.get()).passed


def test_arrays_on_another_gpu_leave_the_current_one_alone(second_gpu: int, cupy: Any) -> None:
    other, problem = second_gpu, Linear(3, 512, 1024)
    with cupy.cuda.Device(other):
        inputs, x, w = operands(cupy, problem)
        out = cupy.zeros((3, 512), cupy.uint16)
        cupy.cuda.Device().synchronize()
    for y in (None, out, out):  # made beside x, filled, filled by a repeated call
        y = lab.linear(x, w, out=y)
        assert cupy.cuda.runtime.getDevice() == 0
        assert y.device.id == other
        with cupy.cuda.Device(other):
            cupy.cuda.Device().synchronize()
        assert compare_y(problem, inputs, y.get()).passed
    with pytest.raises(InputError, match="w is on GPU 0 and x on GPU 1"):
        lab.linear(x, cupy.zeros((512, 1024), cupy.uint16))


def test_a_plan_runs_and_replays_on_the_gpu(chip: Machine, cupy: Any) -> None:
    problem = Linear(4, 512, 1024)
    bound = plan(problem, chip).bind({})
    graph = None
    for seed in (1, 2):
        inputs = problem.draw(np.random.default_rng(seed))
        arrays = {name: cupy.asarray(array) for name, array in inputs.items()}
        arrays["y"] = cupy.full((4, 512), 0xFFFF, cupy.uint16)
        bound.bind(arrays)
        if graph is None:
            graph = capture(bound)
        else:
            graph.update()
        for run in (bound.run, graph.replay):
            arrays["y"][...] = 0xFFFF
            run()
            assert compare_y(problem, inputs, arrays["y"].get()).passed


def test_tensor_maps_follow_arrays_that_move(chip: Machine, cupy: Any) -> None:
    """Maps are encoded once and then changed in place."""
    kernel, problem = runnable("gemm_warp_specialized", chip), Linear(256, 256, 512)
    bound = plan(problem, chip, kernel=kernel).bind({})
    for seed in (1, 2, 3):
        inputs = problem.draw(np.random.default_rng(seed))
        arrays = {name: cupy.asarray(array) for name, array in inputs.items()}
        y = cupy.full((256, 256), 0xFFFF, cupy.uint16)
        bound.bind({**arrays, "y": y}).run()
        assert compare_y(problem, inputs, y.get()).passed


def test_numbers_are_scales_on_the_gpu(cupy: Any) -> None:
    x, w = (cupy.asarray(encode(np.ones((rows, 128)), "fp8")) for rows in (4, 64))
    with cupy.cuda.Stream(non_blocking=True) as stream:
        y = lab.linear(x, w, x_scale=0.5, w_scale=2)
        stream.synchronize()
    assert (decode(y.get(), "bf16") == 128).all()


@pytest.mark.parametrize("m", [1, 3, 4, 16])
def test_an_act_order_layer_on_the_gpu(m: int, cupy: Any) -> None:
    """Up to a few rows of x are taken in the order of the packed columns as they are loaded, more are copied first."""
    n, k, group = 256, 1024, 128
    rng = np.random.default_rng(m)
    q, order = rng.integers(0, 16, (n, k), np.uint8), rng.permutation(k)
    scale = rng.uniform(0.01, 0.1, (n, k // group)).astype(np.float16)
    zero = rng.integers(0, 16, scale.shape).astype(np.float16)
    groups = int4.Groups(q, scale, zero, group, zero_points=True, order=order)
    x = encode(rng.standard_normal((m, k)), "bf16")
    problem = Linear(m, n, k, f"int4_g{group}", offset="zero", order="given")
    w, w_scale = int4.pack(groups)
    inputs = {"x": x, "w": w, "w_scale": w_scale, "order": order.astype(np.int32)}
    weights = lab.Int4Weights.of(groups, like=cupy.zeros(1))
    out = cupy.zeros((m, n), cupy.uint16)
    for y in (None, out, out):  # made, filled, filled by a repeated call
        y = lab.linear(cupy.asarray(x), weights, out=y)
        cupy.cuda.get_current_stream().synchronize()
        assert compare_y(problem, inputs, y.get()).passed


def test_arrays_that_no_kernel_can_take_are_refused(cupy: Any, torch: Any) -> None:
    w = cupy.zeros((64, 128), cupy.uint16)
    x = cupy.zeros((4, 128), cupy.uint16)
    flat = cupy.zeros(4 * 128 + 8, cupy.uint16)
    for bad, sentence in (
        (x.T.copy().T, "x must be dense and row-major"),
        (flat[1 : 1 + 512].reshape(4, 128), "x must start at a multiple of 16 B"),
        (x[:, :64].copy(), "must share k"),
        (x.astype(cupy.float32), "needs x in bf16"),
        (torch.zeros(4, 128), "move it to the GPU"),
    ):
        with pytest.raises(InputError, match=sentence):
            lab.linear(bad, w)
    with pytest.raises(InputError, match="out must not overlap w"):
        lab.linear(w[:4], w, out=w[8:10].reshape(4, 64))


@pytest.mark.usefixtures("chip")
def test_a_hanging_kernel_is_killed_at_its_deadline() -> None:
    from tests.gpu import jobs

    seen: list[Any] = []
    with pytest.raises(EnvironmentFailure, match="killed at its deadline of 40 s"):
        collect(worker.stream(jobs.hang, None, DEADLINE_S), seen)
    assert seen == ["running"]
    assert worker.run(jobs.check_all, None, 300) == []


def collect(items: Iterator[Any], into: list[Any]) -> None:
    """Keep the items that come before an error."""
    for item in items:
        into.append(item)


@pytest.mark.usefixtures("chip")
def test_a_device_error_is_one_sentence_and_stays_in_its_process() -> None:
    from tests.gpu import jobs

    with pytest.raises(EnvironmentFailure, match="illegal address"):
        worker.run(jobs.illegal_address, None, DEADLINE_S)
    assert worker.run(jobs.check_all, None, 300) == []


@pytest.mark.usefixtures("chip")
@pytest.mark.parametrize("tool", ["memcheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not on PATH")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "tests.gpu.jobs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=worker.environment())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("name", LINEAR)
def test_hardware_counters_agree_with_theory(name: str, chip: Machine) -> None:
    if shutil.which("ncu") is None:
        pytest.skip("ncu is not on PATH")
    from lab.gpu import counters

    kernel = runnable(name, chip)
    problem = Linear(1, 512, 1024) if kernel.family == "gemv" else Linear(512, 512, 512)
    if kernel.solves.refusal(problem):
        pytest.skip(f"{name} does not take {problem}")
    schedule = kernel.best_guess(problem, chip)
    counted = counters.read(kernel, problem, schedule, chip).counts
    theory = kernel.module.theory(problem, schedule, chip)
    for field in ("global_load_sectors", "global_store_sectors", "tma_load_bytes", "mma_flops"):
        assert getattr(counted, field) == getattr(theory, field), field


@pytest.mark.parametrize("clock", ["cold", "graph"])
def test_a_bench_gives_checked_possible_records(clock: str, chip: Machine) -> None:
    from lab.gpu.bench import Bench, Candidate
    from lab.gpu.timing import Clock

    kernel = runnable("gemv_vectorized", chip)
    problem = Linear(1, 4096, 4096)
    entry = Candidate(kernel, kernel.best_guess(problem, chip))
    (record,) = Bench(problem, chip).race([entry], {}, clocks=(Clock(clock),), rounds=5)
    assert record.check is not None
    assert record.check.passed
    assert len(record.samples_us) == 5
    assert "impossible" not in record.metrics


FORMS = [
    Linear(100, 512, 4096),
    Linear(100, 512, 4096, "fp16"),
    Linear(100, 512, 4096, "fp32"),
    Linear(100, 512, 4096, epilogue="residual"),
    Linear(100, 512, 4096, epilogue="swiglu"),
    *(
        Linear(100, 512, 4096, "fp8", "fp8", scales=scales, accumulate=accumulate)
        for scales in ("none", "tensor", "row")
        for accumulate in ("fast", "float32")
    ),
]


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("problem", FORMS, ids=str)
def test_what_is_chosen_and_its_peers_are_right_in_one_race(problem: Linear, chip: Machine) -> None:
    from experiments.peers.linear import peers
    from lab.choice import choose
    from lab.gpu.bench import Bench, Candidate
    from lab.gpu.timing import Clock

    kernel, schedule, _ = choose(problem, chip)
    records = Bench(problem, chip).race([Candidate(kernel, schedule)], peers(problem), (Clock.COLD, Clock.GRAPH), 3)
    assert {r.kernel for r in records} > {kernel.name}
    assert [(r.kernel, r.metrics) for r in records if r.us is None] == []


def test_a_search_finds_a_winner_among_right_kernels(chip: Machine) -> None:
    from lab import tuned
    from lab.choice import contenders
    from lab.gpu.bench import Bench, Candidate
    from lab.gpu.search import search
    from lab.gpu.timing import Clock

    problem = Linear(512, 1024, 1024)
    entries = [Candidate(*pair) for pair in contenders(problem, chip)]
    records = search(Bench(problem, chip), entries, {}, Clock.COLD, rounds=5)
    raced = [record for record in records if record.metrics["stage"] == tuned.FINAL]
    assert [(r.kernel, r.schedule, r.metrics) for r in raced if r.us is None] == []
    assert tuned.winner(records, problem) is not None


def test_weights_round_to_bf16_as_the_format_does(cupy: Any) -> None:
    from lab.gpu.bits import encode_bf16

    patterns = np.random.default_rng(0).integers(0, 2**32, 2**16, np.uint32).view(np.float32)
    values = np.concatenate([patterns, np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38, 1.00390625])])
    found = decode(encode_bf16(cupy.asarray(values)).get(), "bf16")
    assert np.array_equal(found, decode(encode(values, "bf16"), "bf16"), equal_nan=True)


@pytest.mark.usefixtures("cupy")
def test_ceilings_are_possible(chip: Machine) -> None:
    from lab.gpu.ceilings import empty_launch, read_ceilings
    from lab.gpu.timing import Clock

    for clock in Clock:
        (read,) = read_ceilings(clock, sizes=(64 * 2**20,), rounds=3)
        assert 0 < read.bandwidth < chip.hbm_bandwidth
        assert empty_launch(clock).us > 0


@pytest.mark.usefixtures("chip")
def test_the_card_says_how_it_is() -> None:
    seen = device.conditions()
    assert seen.sm_clock is not None
    assert 0 < seen.sm_clock <= device.card().sm_clock_max
    assert seen.power_w is not None
    assert seen.throttle is not None
