"""What a user would call instead of the lab's kernels for attention: cuDNN by way of PyTorch, FlashInfer, FA4."""

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from itertools import accumulate

import cupy
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from experiments.peers.arrays import FORMATS, as_torch, on_this_stream
from lab.gpu.bench import Arrays, Loose, Mover, Peer
from lab.gpu.device import card
from lab.gpu.probes import WORD, kernel
from lab.gpu.timing import Call
from lab.problems import Attention

FEW = 16  # queries of a sequence up to which it is decode
ROUNDED = 2.0**-6  # of weights and results, to bf16
SMALL_PAGE = 1  # tokens, whose reads are scattered
CUT = 16  # tokens: what a contiguous cache is as pages, one after another, for a library that has no other
WORKSPACE = 2**28  # bytes that FlashInfer asks for
PACKAGES = {"fa4": ("quack", "cutlass"), "flashinfer": ("flashinfer",)}  # FA4's own folder has other packages too


def peers(problem: Attention) -> dict[str, Peer]:
    """Those that take the problem and are installed."""
    p, found = problem, {}
    alike = not p.q_lens and not p.kv_lens
    if p.window or p.lse or p.packed:
        return {}
    if p.latent:
        plain = p.page and not p.q_lens and (p.q_len == 1 or not p.causal) and p.kv == "bf16" and p.q_len <= FEW
        return {"flashinfer": flashinfer_mla} if plain and _is_installed("flashinfer") else {}
    if p.kv != p.activations:
        return {}
    if not p.page and alike and (not p.causal or p.q_len in (1, p.kv_len)):  # PyTorch's mask is aligned to the top left
        found["cudnn"] = cudnn
    if not p.page and alike and p.q_len > FEW:
        found |= {name: peer for name, peer in (("fa4", fa4), ("flashinfer", flashinfer)) if _is_installed(name)}
    whole = p.page or (alike and p.kv_len % CUT == 0)
    if whole and not p.q_lens and p.q_len == 1 and _is_installed("flashinfer"):
        found["flashinfer"] = flashinfer_decode
    return found


def _is_installed(peer: str) -> bool:
    return all(find_spec(package) for package in PACKAGES[peer])


def movers(problem: Attention) -> dict[str, Mover]:
    """A plain read of the cache through the block table, where pages are small."""
    return {"gather": gather} if 0 < problem.page <= SMALL_PAGE and not problem.kv_lens else {}


def gather(arrays: Arrays) -> Call:
    """All pages of the table, each read whole by neighbouring threads."""
    cache, out = arrays["cache"], cupy.zeros(1, cupy.uint32)
    words = cache[0].nbytes // WORD
    size = arrays["block_table"].size * words
    arguments = (cache, arrays["block_table"], cupy.uint64(size), cupy.uint32(words.bit_length() - 1), out)
    return partial(kernel("gather"), (8 * card().sms,), (256,), arguments)


def cudnn(problem: Attention, arrays: Arrays) -> Loose:
    """PyTorch's scaled_dot_product_attention, held to cuDNN: [batch, heads, tokens, head_dim] views of the arrays."""
    p = problem
    q, k, v = (array.transpose(1, 2) for array in _by_sequence(p, arrays))
    causal = p.causal and p.q_len > 1
    held: list[torch.Tensor] = []

    def work() -> None:
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
            held[:] = [scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=p.group > 1)]

    return Loose(on_this_stream(work), lambda: held[0].transpose(1, 2).float().cpu().numpy(), ROUNDED)


def fa4(problem: Attention, arrays: Arrays) -> Loose:
    """FlashAttention-4's kernel for Hopper: [batch, tokens, heads, head_dim], its mask aligned to the bottom right."""
    from flash_attn.cute.interface import flash_attn_func  # heavy, and asked for by its problems alone

    p, (q, k, v) = problem, _by_sequence(problem, arrays)
    held: list[torch.Tensor] = []

    def work() -> None:
        held[:] = [flash_attn_func(q, k, v, causal=p.causal, softmax_scale=p.score_scale)[0]]

    return Loose(on_this_stream(work), lambda: held[0].float().cpu().numpy(), ROUNDED)


def flashinfer(problem: Attention, arrays: Arrays) -> Loose:
    """FlashInfer's FA3 template on ragged sequences, planned on the host beforehand."""
    from flashinfer import BatchPrefillWithRaggedKVCacheWrapper

    p, form = problem, FORMATS[problem.kv]
    starts = (_ints([rows * b for b in range(p.batch + 1)]) for rows in (p.q_len, p.kv_len))
    wrapper = BatchPrefillWithRaggedKVCacheWrapper(_workspace(), "NHD", backend="fa3")
    wrapper.plan(
        *starts, p.q_heads, p.kv_heads, p.head_dim, causal=p.causal, sm_scale=p.score_scale, q_data_type=form,
        kv_data_type=form,
    )  # fmt: skip
    q, k, v = (as_torch(arrays[name], p.kv) for name in ("q", "k", "v"))
    held: list[torch.Tensor] = []

    def work() -> None:
        held[:] = [wrapper.run(q, k, v)]

    return Loose(on_this_stream(work), lambda: held[0].float().cpu().numpy(), ROUNDED)


def flashinfer_decode(problem: Attention, arrays: Arrays) -> Loose:
    """FlashInfer's paged decode on its tensor cores, planned on the host beforehand."""
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper  # heavy, and asked for by its problems alone

    p, form, page = problem, FORMATS[problem.kv], problem.page or CUT
    cache: torch.Tensor | tuple[torch.Tensor, ...]
    if p.page:
        pages, used = _pages(p, arrays)
        cache = as_torch(arrays["cache"], p.kv)
    else:
        pages, used = [p.kv_len // page] * p.batch, list(range(p.batch * p.kv_len // page))
        cache = tuple(as_torch(arrays[name], p.kv).view(-1, page, p.kv_heads, p.head_dim) for name in ("k", "v"))
    last = [sequence.kv_len - (n - 1) * page for sequence, n in zip(p.sequences, pages, strict=True)]
    wrapper = BatchDecodeWithPagedKVCacheWrapper(_workspace(), "HND" if p.page else "NHD", use_tensor_cores=True)
    wrapper.plan(
        _ints(_starts(pages)), _ints(used), _ints(last), p.q_heads, p.kv_heads, p.head_dim, page, q_data_type=form,
        kv_data_type=form,
    )  # fmt: skip
    q = as_torch(arrays["q"], p.activations)
    held: list[torch.Tensor] = []

    def work() -> None:
        held[:] = [wrapper.run(q, cache)]

    return Loose(on_this_stream(work), lambda: held[0].float().cpu().numpy(), ROUNDED)


def flashinfer_mla(problem: Attention, arrays: Arrays) -> Loose:
    """FlashInfer's MLA decode by wgmma, planned on the host beforehand; queries come in two arrays of their own."""
    from flashinfer.mla import BatchMLAPagedAttentionWrapper

    p, form = problem, FORMATS[problem.kv]
    pages, used = _pages(p, arrays)
    lengths = [sequence.kv_len for sequence in p.sequences]
    wrapper = BatchMLAPagedAttentionWrapper(_workspace(), backend="fa3")
    wrapper.plan(
        _ints(_starts([p.q_len] * p.batch)), _ints(_starts(pages)), _ints(used), _ints(lengths), p.q_heads, p.latent,
        p.head_dim - p.latent, p.page, False, p.score_scale, form, form,
    )  # fmt: skip
    split = [p.latent, p.head_dim - p.latent]
    queries = [part.contiguous() for part in as_torch(arrays["q"], p.kv).split(split, dim=-1)]
    latents = as_torch(arrays["cache"], p.kv).split(split, dim=-1)
    held: list[torch.Tensor] = []

    def work() -> None:
        held[:] = [wrapper.run(*queries, *latents)]

    return Loose(on_this_stream(work), lambda: held[0].float().cpu().numpy(), ROUNDED)


def _pages(problem: Attention, arrays: Arrays) -> tuple[list[int], list[int]]:
    """How many pages each sequence has, and the ids of all, one sequence after another."""
    table = arrays["block_table"].get()
    pages = [-(-sequence.kv_len // problem.page) for sequence in problem.sequences]
    return pages, [int(page) for b, n in enumerate(pages) for page in table[b, :n]]


def _starts(counts: list[int]) -> list[int]:
    return [0, *accumulate(counts)]


def _by_sequence(problem: Attention, arrays: Arrays) -> Iterator[torch.Tensor]:
    """q, k and v as [batch, tokens, heads, head_dim]."""
    p = problem
    for name, heads in (("q", p.q_heads), ("k", p.kv_heads), ("v", p.kv_heads)):
        yield as_torch(arrays[name], p.kv).view(p.batch, -1, heads, p.head_dim)


def _ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def _workspace() -> torch.Tensor:
    return torch.empty(WORKSPACE, dtype=torch.uint8, device="cuda")
