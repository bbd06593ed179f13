"""`attention(q, k, v)` on the arrays that other programs have, where those arrays are; caches contiguous or paged.

As lab/ops/linear.py: nothing is copied, the work is enqueued on the caller's current stream, and a plan is chosen once
for shapes, greatest lengths and options. Lengths and block tables are arrays that kernels read: a captured graph
replays as they change.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lab.ops.arrays import INDEX, Library, View, is_number, library_of
from lab.ops.attention_request import NUMBER, SCALES, AttentionRequest, may_lie_apart, posed, scale_of
from lab.ops.calls import Calls, on_gpu, one_device, remember, require_apart, simulated, spoken
from lab.ops.indices import require_legal
from lab.problems import Attention, Operand
from sim.errors import InputError

if TYPE_CHECKING:
    from lab.execute.device import DeviceBound

INDICES = ("q_starts", "kv_lens", "block_table")
_RESULTS = ("y", "lse")


def attention(
    q: Any,
    k: Any,
    v: Any = None,
    *,
    out: Any = None,
    lse: Any = None,
    causal: bool = True,
    window: int = 0,
    scale: float | None = None,
    q_starts: Any = None,
    kv_lens: Any = None,
    block_table: Any = None,
    max_q_len: int | None = None,
    max_kv_len: int | None = None,
    k_scale: Any = None,
    v_scale: Any = None,
    q_scale: Any = None,
    latent: int = 0,
    deterministic: bool = False,  # noqa: ARG001 (see below: every kernel is)
    check: bool = False,
    stream: int | None = None,
) -> Any:
    """y = softmax(scale q k^T) v for every sequence and head; query head h reads KV head h // (heads / kv_heads).

    Arrays are all CuPy's or PyTorch's on one GPU, or all NumPy's, dense and row-major; or q, and k and v that are not
    paged, are parts of the rows of one projection, [.., heads + 2 kv_heads, dim]. q is [batch, q_len, heads, dim],
    or with `q_starts` [batch + 1] packed, [tokens, heads, dim]: sequence b has rows q_starts[b] to q_starts[b + 1].
    Keys and values are one of
    - k, v [batch, kv_len, kv_heads, dim], of which sequence b has the first kv_lens[b], by default all;
    - k, v [rows, kv_heads, dim] beside packed q: sequence b has kv_lens[b] rows from q_starts[b] on;
    - k [pages, 2, kv_heads, page, dim], keys and values of a paged cache: token t of sequence b is in page
      block_table[b, t // page]. Page 0 is nobody's.
    With `latent` there are no KV heads and no v: k is [batch, kv_len, dim], [rows, dim] or [pages, page, dim], and the
    first `latent` elements are the value (multi-head latent attention, absorbed).

    q is float16, bfloat16 (or uint16 bits) or float32, k and v the same, or beside bfloat16 float8_e4m3fn (or uint8
    bits), which `k_scale` and `v_scale`, float32 [kv_heads] or numbers, multiply. Beside such k and v, q may be
    float8_e4m3fn too, which `q_scale` multiplies, for each KV head; y is bfloat16 then. Lengths and tables are int32.
    A causal query sees the keys up to its own, the last one of a sequence all of them; `window` above 0 leaves it the
    last so many. One that sees no key yields zeros. `scale` is 1 / sqrt(dim) where it is None. `lse` is an array
    [.., heads] for the natural logarithm of the sum of exponentials, float32, or True to have one made.
    `max_q_len` and `max_kv_len` are the greatest lengths that packed or paged sequences may have, by default those that
    arrays have room for; small ones let a better kernel be chosen. All kernels add in an order that follows from shapes
    and lengths alone, so results repeat bit for bit, and `deterministic` asks for no more than that.

    Lengths are trusted, and page numbers brought inside the cache, unless `check` is true: then lengths and tables are
    read first, which waits for the GPU, and refused where they are wrong. NumPy's are always checked.

    On the GPU arrays start at multiples of 16 bytes (lengths and tables of 4), nothing is copied, and the work runs on
    `stream` (a CUstream address) or on the current stream of PyTorch for its tensors, of CuPy otherwise, also while a
    graph is captured. No gradient flows. Rows of the results that are no sequence's may hold anything. Returns out,
    or (out, lse) where lse is asked for. Raises InputError in one sentence for anything else, NoDeviceError where the
    GPU cannot run a kernel for it.
    """
    makes_lse = lse is True
    given = {"q": q, "k": k, "v": v, "q_starts": q_starts, "kv_lens": kv_lens, "block_table": block_table}
    given |= {"q_scale": q_scale, "k_scale": k_scale, "v_scale": v_scale}
    given |= {"y": out, "lse": None if isinstance(lse, bool) else lse}
    given = {name: array for name, array in given.items() if array is not None or name == "k"}
    options = (causal, window, scale_of(scale), max_q_len, max_kv_len, latent, makes_lse)
    may_repeat = out is not None and not makes_lse and not check
    if may_repeat and (again := _repeated(given, options, stream)):
        again()
        return given["y"] if "lse" not in given else (given["y"], given["lse"])
    library = library_of(q)
    described = {
        name: library.describe(
            array,
            spoken(name),
            INDEX if name in INDICES else "",
            name in _RESULTS,
            may_lie_apart(name, block_table is not None),
        )
        for name, array in given.items()
        if not (name in SCALES and is_number(array))
    }
    kinds = [(name, operand.shape, operand.format, operand.pitch) for name, operand in described.items()]
    kinds += [(name, (), NUMBER, 0) for name in given if name not in described]
    problem, names = posed(AttentionRequest(tuple(kinds), *options))
    leading = described["q"].shape[:-1]
    for name, shape, form in (("y", (*leading, problem.value_dim), problem.output), ("lse", leading, "fp32")):
        if name not in given and (name == "y" or makes_lse):
            given[name] = library.empty(q, shape, form)
            described[name] = library.describe(given[name], spoken(name))
    results = given["y"] if "lse" not in given else (given["y"], given["lse"])
    if not prod(described["y"].shape):  # no queries: there is nothing to compute
        return results
    device = one_device(described)
    require_apart(described, [name for name in _RESULTS if name in described])
    may_repeat &= not _fill_scales(library, problem, device, given, described)
    if device is None:
        arrays = {**problem.indices(), **{name: given[called] for name, called in names.items() if called in given}}
        if "kv_starts" in arrays:
            arrays["kv_starts"] = arrays["kv_starts"][: problem.batch]  # q_starts end with one more
        arrays |= {name: _in_rows(arrays[name], problem.inputs[name]) for name in _apart(problem)}
        require_legal(problem, arrays)
        simulated(problem).bind(arrays, device=None).run()
        return results
    if stream is None:
        _, stream = library.place(q)
    operands = {name: described[called] for name, called in names.items() if called in described}
    if check:
        require_legal(problem, {**problem.indices(), **_read(operands, device, stream)})
    bound = _bound(problem, tuple(operands), device, stream)
    pointers = {name: operand.pointer for name, operand in operands.items()}
    if may_repeat:
        with suppress(AttributeError):  # arrays that have no more than an interface
            remember(_ready, _key(library, given, options, stream), bound.at(pointers, stream))
            _libraries[type(q)] = library
    bound.run_at(pointers, stream)
    return results


_ready: Calls = {}  # by `_key`
_libraries: dict[type, Library] = {}  # by the type of q, for calls that are repeated


def _key(library: Library, given: dict[str, Any], options: tuple[Any, ...], stream: int | None) -> Any:
    """All that decides a call."""
    if stream is None:
        _, stream = library.place(given["q"])
    return stream, options, tuple(given), library.identity(*given.values())


def _repeated(given: dict[str, Any], options: tuple[Any, ...], stream: int | None) -> Callable[[], None] | None:
    """The call that an earlier one was, on the same memory; None where that is not so, or not sure."""
    try:
        return _ready.get(_key(_libraries[type(given["q"])], given, options, stream))
    except (AttributeError, KeyError, TypeError):
        return None


def _apart(problem: Attention) -> tuple[str, ...]:
    """The operands that are parts of the rows of a projection."""
    return () if not problem.packed else ("q",) if problem.page else ("q", "k", "v")


def _in_rows(array: NDArray, operand: Operand) -> NDArray:
    """A copy of an array in rows as long as the operand's, whatever is behind each being NaN."""
    rows = np.full(operand.shape, -1, f"int{8 * array.itemsize}").view(array.dtype)
    rows[:, : array.shape[-2]] = array.reshape(-1, *array.shape[-2:])
    return rows


def _fill_scales(
    library: Library, problem: Attention, device: int | None, given: dict[str, Any], described: dict[str, View]
) -> bool:
    """Make arrays of the scales that are numbers, and of those not given, which are 1; whether there are any such."""
    missing = [name for name in SCALES if name in problem.inputs and name not in described]
    for name in missing:
        given[name], described[name] = library.number(given.get(name, 1.0), name, device, problem.kv_heads)
    return bool(missing)


def _read(operands: dict[str, View], device: int, stream: int) -> dict[str, NDArray]:
    """The index arrays on the host; raises InputError while a graph is captured."""
    from lab.gpu import driver, launch  # loaded on first use: the simulated chip needs no GPU library

    if driver.is_capturing(stream):
        raise InputError("check reads lengths and tables, which waits for the GPU: not while a graph is captured")
    return {
        name: launch.read(operand.pointer, operand.shape, np.dtype(INDEX), device, stream)
        for name, operand in operands.items()
        if operand.format == INDEX
    }


@lru_cache(maxsize=1024)
def _bound(problem: Attention, given: tuple[str, ...], device: int, stream: int) -> "DeviceBound":
    """One a problem, GPU and stream: two streams must not share a workspace. What is not given it has for itself."""
    return on_gpu(problem, device, stream, given)
