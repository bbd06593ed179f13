"""Calls of `lab.linear` that are kept for when they are repeated: a small layer's call is to cost the host little.

What was checked when a call was kept is not checked again. A call is found by its stream, by where its arrays lie and
by the shape of x, for one buffer may serve many sizes; all else that it depends on is then compared. To find one takes
the fewest instructions: where none is kept KeyError is raised, or whatever comes of another library's arrays.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from lab.ops.arrays import CUDA, TORCH, Library, raw_stream
from lab.ops.calls import remember

Call = Callable[[], None]
Kept = dict[Any, tuple[Any, Call]]
Find = Callable[..., Call]  # of x, w, out, a stream or None, and where calls are kept

_OF_TORCH: Kept = {}
_OF_CUPY: Kept = {}  # apart: both may have arrays of one memory


@cache
def _find_torch() -> Find:
    current = raw_stream()

    def find(x: Any, w: Any, out: Any, stream: int | None, kept: Kept = _OF_TORCH) -> Call:
        if stream is None:
            stream = current(x.get_device())
        alike, call = kept[stream, x.data_ptr(), w.data_ptr(), out.data_ptr(), x.shape]
        if (
            alike == (w.shape, out.shape, x.dtype, w.dtype, out.dtype)
            and x.is_contiguous()
            and w.is_contiguous()
            and out.is_contiguous()
        ):
            return call
        raise KeyError("another call on the same memory")

    return find


def _keep_torch(x: Any, w: Any, out: Any, stream: int, call: Call, kept: Kept = _OF_TORCH) -> None:
    key = stream, x.data_ptr(), w.data_ptr(), out.data_ptr(), x.shape
    remember(kept, key, ((w.shape, out.shape, x.dtype, w.dtype, out.dtype), call))


@cache
def _find_cupy() -> Find:
    import cupy  # loaded on first use: the simulated chip needs no GPU library

    current = cupy.cuda.get_current_stream

    def find(x: Any, w: Any, out: Any, stream: int | None, kept: Kept = _OF_CUPY) -> Call:
        at = x.data
        if stream is None:
            stream = current(at.device_id).ptr
        alike, call = kept[stream, at.ptr, w.data.ptr, out.data.ptr, x.shape]
        if (
            alike == (w.shape, out.shape, x.dtype, w.dtype, out.dtype)
            and x._c_contiguous  # `flags` takes five times as long
            and w._c_contiguous
            and out._c_contiguous
        ):
            return call
        raise KeyError("another call on the same memory")

    return find


def _keep_cupy(x: Any, w: Any, out: Any, stream: int, call: Call, kept: Kept = _OF_CUPY) -> None:
    key = stream, x.data.ptr, w.data.ptr, out.data.ptr, x.shape
    remember(kept, key, ((w.shape, out.shape, x.dtype, w.dtype, out.dtype), call))


def finder(library: Library) -> Find:
    """What finds the call that is kept for three arrays of a library, on their current stream where none is given."""
    return _FIND[library]()


def keep(library: Library, x: Any, w: Any, out: Any, stream: int, call: Call, kept: Kept | None = None) -> None:
    """Keep a call on three arrays, in place of another on the same memory and stream; `kept` is where it is sought."""
    _KEEP[library](x, w, out, stream, call, *(() if kept is None else (kept,)))


_FIND: dict[Library, Callable[[], Find]] = {TORCH: _find_torch, CUDA: _find_cupy}
_KEEP: dict[Library, Callable[..., None]] = {TORCH: _keep_torch, CUDA: _keep_cupy}
