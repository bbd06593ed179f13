"""lab.attention on the real chip: as PyTorch has it, wherever keys lie, in graphs whose lengths and tables change."""

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import lab
from experiments.running.jobs import Job, batch
from experiments.running.layers_on_device import layers
from lab.choice import is_solvable
from lab.problems import Attention
from lab.verify import compare
from sim.errors import InputError
from sim.formats import decode
from sim.machine import Machine

RAGGED = (200, 0, 77, 1), (300, 65, 77, 0)  # queries and keys of four sequences
PROBLEMS = [
    Attention(2, 8, 8, 128, 300, 300),
    Attention(2, 8, 2, 64, 100, 515, kv="fp16"),
    Attention(1, 6, 2, 128, 257, 257, causal=False),
    Attention(2, 8, 2, 128, 200, 700, window=100),
    Attention(2, 8, 2, 128, 200, 700, scale=0.02),
    Attention(4, 8, 2, 128, 200, 300, q_lens=RAGGED[0], kv_lens=RAGGED[1]),
    Attention(3, 32, 8, 128, 1, 1000, kv_lens=(1000, 1, 523)),
    Attention(3, 32, 8, 128, 4, 1000, kv_lens=(1000, 4, 523)),
    Attention(3, 32, 8, 128, 1, 1000, kv="fp8", kv_lens=(1000, 1, 523)),
    Attention(1, 32, 8, 128, 1, 2048),
    Attention(1, 32, 8, 128, 16, 3000, kv_lens=(2777,)),
    Attention(2, 16, 1, 576, 1, 1000, latent=512, kv_lens=(1000, 523)),
    Attention(2, 64, 1, 576, 1, 1000, latent=512, kv_lens=(1000, 523)),
    Attention(2, 128, 1, 576, 1, 1000, latent=512, kv_lens=(1000, 523)),
]
PAGES = (0, 1, 16, 64, 128)


def solvable(problem: Attention, chip: Machine) -> Attention:
    if not is_solvable(problem, chip):
        pytest.skip(f"no kernel takes {problem}")
    return problem


def call_of(problem: Attention, arrays: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call for a problem's own arrays."""
    p, found = problem, {name: arrays[name] for name in ("q", "kv_lens", "k_scale", "v_scale") if name in arrays}
    if p.q_lens:
        found |= {"q_starts": arrays["q_starts"], "max_q_len": p.q_len}
    else:
        found["q"] = arrays["q"].reshape(p.batch, p.q_len, p.q_heads, p.head_dim)
    if p.page:
        found |= {"k": arrays["cache"], "block_table": arrays["block_table"], "max_kv_len": p.kv_len}
    else:
        token = (p.head_dim,) if p.latent else (p.kv_heads, p.head_dim)
        found |= {name: arrays[name].reshape(p.batch, p.kv_len, *token) for name in ("k", "v") if name in arrays}
    return {**found, "causal": p.causal, "window": p.window, "scale": p.scale or None, "latent": p.latent}


def right(problem: Attention, arrays: dict[str, NDArray], y: NDArray) -> bool:
    """Whether the queries that are there have the right results; what the door makes is not poisoned behind them."""
    found = np.full((problem.tokens, problem.q_heads, problem.value_dim), 0xFFFF, np.uint16)
    found[: problem.rows] = y.reshape(found.shape)[: problem.rows]
    return compare(replace(problem, lse=False), problem.reference(arrays), {"y": found}).passed


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_wherever_keys_lie_each_sequence_attends_to_its_own(
    problem: Attention, page: int, chip: Machine, cupy: Any
) -> None:
    problem = solvable(replace(problem, page=page), chip)
    arrays = problem.draw(np.random.default_rng(0))
    half = problem.kv == "fp16"  # words are bfloat16 else
    there = {n: cupy.asarray(a.view(np.float16) if half and a.dtype == np.uint16 else a) for n, a in arrays.items()}
    y = lab.attention(**call_of(problem, there), check=True)
    assert right(problem, arrays, y.get().view(np.uint16))


@pytest.mark.parametrize(
    ("q_len", "kv_len", "causal", "scale"), [(300, 300, True, None), (100, 515, True, 0.05), (257, 130, False, None)]
)
def test_results_are_those_of_pytorch(
    q_len: int, kv_len: int, causal: bool, scale: float | None, chip: Machine, torch: Any
) -> None:
    """In float64 there, with a mask of our own: PyTorch's is aligned to the top left."""
    problem = solvable(Attention(2, 8, 2, 128, q_len, kv_len, causal=causal, scale=scale or 0.0, lse=True), chip)
    q = torch.randn(2, q_len, 8, 128, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(2, kv_len, 2, 128, device="cuda", dtype=torch.bfloat16) for _ in "kv")
    y, lse = lab.attention(q, k, v, causal=causal, scale=scale, lse=True)
    mask = torch.ones(q_len, kv_len, device="cuda", dtype=torch.bool).tril(kv_len - q_len if causal else kv_len)
    wide = [array.double().transpose(1, 2) for array in (q, k, v)]
    attend = torch.nn.functional.scaled_dot_product_attention
    expected = attend(*wide, attn_mask=mask, scale=scale, enable_gqa=True).transpose(1, 2)
    scores = (scale or 128**-0.5) * wide[0] @ wide[1].repeat_interleave(4, 1).transpose(2, 3)
    log_sums = scores.masked_fill(~mask, -torch.inf).logsumexp(-1).transpose(1, 2)
    operands = {name: bits(torch, a).reshape(-1, *a.shape[2:]) for name, a in (("q", q), ("k", k), ("v", v))}
    bounds = problem.reference({**operands, **problem.indices()})
    for found, wanted, name in ((y, expected, "y"), (lse, log_sums, "lse")):
        error = (found.double() - wanted).abs().cpu().numpy()
        assert (error.reshape(bounds[name].error.shape) <= bounds[name].error).all()


def test_parts_of_a_projection_are_taken_as_they_are(torch: Any) -> None:
    """The same bits as of dense copies, again and again, also where another call has the same shapes."""
    q, k, v = torch.randn(2, 300, 12, 128, device="cuda", dtype=torch.bfloat16).split([8, 2, 2], dim=2)
    out, dense = (torch.empty(2, 300, 8, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(2):
        lab.attention(q, k, v, out=out.zero_())
        lab.attention(q.contiguous(), k.contiguous(), v.contiguous(), out=dense.zero_())
        assert torch.equal(out, dense)


def bits(torch: Any, tensor: Any) -> NDArray:
    return tensor.view(torch.int16).cpu().numpy().view(np.uint16)


DECODE = Attention(4, 32, 8, 128, 1, 2048, page=16)
PREFILL = Attention(4, 8, 2, 128, 128, 512, page=16)
STEPS = ((2048, 1, 77, 0), (5, 2048, 16, 512), (17, 16, 15, 2047))


def steps(problem: Attention, seed: int = 0) -> Iterator[tuple[Attention, dict[str, NDArray]]]:
    """Problems of one envelope with other lengths and values, and another order of pages."""
    for i, lengths in enumerate(STEPS):
        kv_lens = tuple(min(length, problem.kv_len) for length in lengths)
        step = replace(problem, kv_lens=kv_lens, order=("shuffled", "sequential")[i % 2])
        yield step, step.draw(np.random.default_rng(seed + i))


@pytest.mark.parametrize("problem", [DECODE, PREFILL], ids=["decode", "prefill"])
def test_a_graph_replays_as_lengths_and_tables_change(problem: Attention, chip: Machine, cupy: Any) -> None:
    problem = solvable(problem, chip)
    there = {name: cupy.asarray(array) for name, array in problem.draw(np.random.default_rng(9)).items()}
    y = cupy.zeros((problem.batch, problem.q_len, problem.q_heads, problem.value_dim), cupy.uint16)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        lab.attention(**call_of(problem, there), out=y)
        with pytest.raises(InputError, match="not while a graph is captured"):
            lab.attention(**call_of(problem, there), out=y, check=True)
        graph = stream.end_capture()
        for step, arrays in steps(problem):
            for name, array in arrays.items():
                there[name][...] = cupy.asarray(array)
            y[...] = 0xFFFF
            graph.launch(stream)
            stream.synchronize()
            assert right(step, arrays, y.get())


def test_a_pytorch_graph_captures_a_call(chip: Machine, torch: Any) -> None:
    problem = solvable(DECODE, chip)
    there = {name: tensor_of(torch, array) for name, array in problem.draw(np.random.default_rng(9)).items()}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = lab.attention(**call_of(problem, there))
    for step, arrays in steps(problem):
        for name, array in arrays.items():
            there[name].copy_(tensor_of(torch, array))
        graph.replay()
        torch.cuda.synchronize()
        assert right(step, arrays, bits(torch, y))


def tensor_of(torch: Any, array: NDArray) -> Any:
    """A tensor on the GPU; 16-bit words are bfloat16."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)
    return torch.from_numpy(array).cuda()


def test_torch_compile_keeps_a_call_whole(chip: Machine, torch: Any) -> None:
    problem = solvable(PREFILL, chip)
    step, arrays = next(steps(problem))
    call = call_of(step, {name: tensor_of(torch, array) for name, array in arrays.items()})
    import_module("lab.ops.torch_ops")  # registers them, whatever was called before
    compiled = torch.compile(lambda **given: torch.ops.lab.attention(**given), fullgraph=True, backend="aot_eager")
    torch.library.opcheck(torch.ops.lab.attention_lse, (), call)
    assert right(step, arrays, bits(torch, compiled(**call)))


def test_page_numbers_outside_the_cache_are_brought_inside(chip: Machine, cupy: Any) -> None:
    """Results mean nothing then, but nothing else is read."""
    problem = solvable(DECODE, chip)
    there = {name: cupy.asarray(array) for name, array in problem.draw(np.random.default_rng(0)).items()}
    before = lab.attention(**call_of(problem, there)).get()
    table = there["block_table"].copy()
    for wrong in (2**31 - 1, -(2**31), problem.pool_pages):
        there["block_table"][:2] = wrong
        with pytest.raises(InputError, match=r"block_table\[0, 0\] = "):
            lab.attention(**call_of(problem, there), check=True)
        y = lab.attention(**call_of(problem, there)).get()
        assert np.array_equal(y[2:], before[2:])
    there["block_table"][...] = table
    assert np.array_equal(lab.attention(**call_of(problem, there)).get(), before)


def test_nothing_is_copied_ahead_but_settled_keys(chip: Machine, cupy: Any) -> None:  # noqa: ARG001
    """Layers whose launches overlap, keys of the last token coming from the launch ahead: `layers` compares bits."""
    for problem in (replace(DECODE, page=16, settled=True), Attention(1, 8, 2, 128, 2, 1000, page=16, settled=True)):
        job = Job(kernel="attention_split_kv", problem=problem.as_dict(), facts={"layers": 4}, rounds=2)
        assert all(record.us for record in layers(batch([job], 60)))


def test_repeated_calls_give_the_same_bits(chip: Machine, cupy: Any) -> None:
    problem = solvable(replace(DECODE, kv_lens=(2048, 3, 1000, 77)), chip)
    there = {name: cupy.asarray(array) for name, array in problem.draw(np.random.default_rng(0)).items()}
    first, *others = (lab.attention(**call_of(problem, there), deterministic=True).get() for _ in range(20))
    assert np.isfinite(decode(first, problem.output)).all()
    assert all(np.array_equal(first, y) for y in others)
