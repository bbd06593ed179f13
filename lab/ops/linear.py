"""`linear(x, w)` on the arrays that other programs have, where those arrays are.

CuPy and PyTorch arrays stay on their GPU, are not copied, and the work is enqueued on the caller's current stream;
NumPy arrays are computed on the simulated chip. The kernel and its schedule are chosen once for a shape: lab/choice.py.
"""

from contextlib import suppress
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from lab.choice import best_guesses
from lab.gpu.device import machine
from lab.ops.arrays import INDEX, Library, View, is_number, library_of
from lab.ops.calls import on_gpu, one_device, remember, require_apart, simulated, spoken
from lab.ops.kept import Call, Find, Kept, finder, keep
from lab.problems import Linear
from lab.problems.linear import BLOCK
from lab.weights import Int4Weights
from sim.errors import InputError
from sim.machine import H100, Machine

if TYPE_CHECKING:
    from lab.execute.device import DeviceBound

_SCALES = ("x_scale", "w_scale", "y_scale")
GATHERED = 4  # rows of x that a launch takes in another order: of more, one launch more costs less


class LinearRequest(NamedTuple):
    """All that decides how a call runs. `kinds` are the name, shape and format of each array.

    `matrix` and `offset` are the shape of int4 weights, which their packed arrays do not tell, and how they are offset;
    they have an `order` where there is an array of that name.
    """

    kinds: tuple[tuple[str, tuple[int, ...], str], ...]
    output: str = ""  # "" for that of out, or the usual one
    swiglu: bool = False
    accumulate: str = ""
    matrix: tuple[int, int] | None = None
    offset: str = "min"


def linear(
    x: Any,
    w: Any,
    out: Any = None,
    stream: int | None = None,
    residual: Any = None,  # not by name alone: that costs each call a tenth of a microsecond
    swiglu: bool = False,
    x_scale: Any = None,
    w_scale: Any = None,
    y_scale: Any = None,
    output: str = "",
    accumulate: str = "",
) -> Any:
    """y[..., n] = x[..., k] @ w[n, k].T, as `torch.nn.functional.linear` without a bias, and what may follow it.

    Arrays are all CuPy's or PyTorch's on one GPU, or all NumPy's, dense and row-major. x and w are float32, float16 or
    bfloat16 (uint16 bits count as bfloat16); beside bfloat16 x, w may be `lab.Int4Weights`, whose `order` costs a copy
    of x and a launch where x has more than a few rows, or float8_e4m3fn (or uint8 bits), which may, with or without
    scales, also stand beside x of its own type. `residual`, in y's shape, is added; `swiglu` takes w in two halves of
    its rows, gate and up, and makes y[..., n / 2] = silu(gate) * up. `x_scale` and `w_scale` are float32, one element
    each, one for each row, one for x and one for each row of w, or, of blocks, x_scale [..., k / 128] for each 128 of
    a row and w_scale [n / 128, k / 128] for each 128 x 128; `y_scale`, one element, divides an fp8 y; a number does for
    one element. y has the type of `out`, else the format `output` (such as "fp8"), else x's type, or bfloat16 where x
    is fp8. Products of fp8 are summed in the few bits that the tensor cores keep, with `accumulate="float32"` in
    float32. Where x has no rows, nor has y.

    On the GPU arrays start at multiples of 16 bytes, nothing is copied, and the work runs on `stream` (a CUstream
    address) or on the current stream of PyTorch for its tensors, of CuPy otherwise, also while a graph is captured. No
    gradient flows. Returns out, which is made where it is None. Raises InputError in one sentence for anything else,
    NoDeviceError where the GPU cannot run a kernel for it.
    """
    plain = residual is x_scale is w_scale is y_scale is None and not (swiglu or output or accumulate)
    may_repeat = plain and out is not None
    if may_repeat:
        try:
            again = _finders[type(w)](x, w, out, stream)
        except (AttributeError, KeyError, TypeError):
            pass  # it is no repeated call, or not sure to be one
        else:
            again()
            return out
    library = library_of(x)
    if isinstance(w, Int4Weights) and w.order is not None and not (plain and _takes_order(library, x, w)):
        x, w, may_repeat = _in_order(x, w, stream), w.in_order, False
    given, described = _operands(library, x, w, residual, x_scale, w_scale, y_scale, out)
    kinds = tuple([(name, operand.shape, operand.format) for name, operand in described.items()])
    packing = (w.shape, w.offset) if isinstance(w, Int4Weights) else ()
    request = LinearRequest(kinds, output, swiglu, accumulate, *packing)
    problem = problem_of(request)
    if out is None:
        out = given["y"] = library.empty(x, (*described["x"].shape[:-1], problem.columns), problem.output)
        described["y"] = library.describe(out, "out")
    if not prod(described["y"].shape):  # no rows: there is nothing to compute
        return out
    device = one_device(described)
    require_apart(described, ("y",))
    if device is None:
        simulated(problem).bind(given, device=None).run()
        return out
    if stream is None:
        _, stream = library.place(x)
    bound, pointers = _bound(problem, device, stream), {name: operand.pointer for name, operand in described.items()}
    if may_repeat:
        with suppress(AttributeError):  # arrays that have no more than an interface
            _keep(library, x, w, out, stream, bound.at(pointers, stream))
    bound.run_at(pointers, stream)
    return out


def _in_order(x: Any, w: Int4Weights, stream: int | None) -> Any:
    """x with its columns as those of w are packed: one more launch; raises InputError for what it cannot follow."""
    library = library_of(x)
    view = library.describe(x, "x")
    if view.shape[-1:] != w.order.shape:
        raise InputError(f"x [..., k] and w [n, k] must share k; x is {list(view.shape)} and w is {list(w.shape)}")
    if stream is not None and stream != library.place(x)[1]:
        raise InputError("weights with an order need x on the current stream: it is put in their order there")
    return library.columns(x, w.order)


def _takes_order(library: Library, x: Any, w: Int4Weights) -> bool:
    """Whether one launch does for x in another order than the weights' columns: so few rows that all of x has room."""
    view = library.describe(x, "x")
    rows = prod(view.shape[:-1])
    if view.shape[-1:] != tuple(w.order.shape) or not 0 < rows <= GATHERED:
        return False
    problem = Linear(rows, *w.shape, w.format, offset=w.offset, order="given")
    return _has_room(problem, H100 if view.device is None else machine(view.device))


@lru_cache(maxsize=1024)
def _has_room(problem: Linear, target: Machine) -> bool:
    try:
        return bool(best_guesses(problem, target))
    except InputError:  # not for so long rows
        return False


_kept_beside: dict[Any, Kept] = {}  # by what int4 weights have beside their packed matrix
_finders: dict[type, Find] = {}  # by the type of w
_libraries: dict[type, Library] = {}  # by the type of int4 weights' arrays


def _keep(library: Library, x: Any, w: Any, out: Any, stream: int, call: Call) -> None:
    """Keep a call without options; raises AttributeError for arrays that have no more than an interface."""
    if type(w) is not Int4Weights:
        keep(library, x, w, out, stream, call)
        _finders[type(w)] = finder(library)
        return
    beside = _beside(library, w)
    if beside not in _kept_beside:
        remember(_kept_beside, beside, {})
    keep(library, x, w.w, out, stream, call, _kept_beside[beside])
    _libraries[type(w.w)] = library
    _finders[Int4Weights] = _find_int4


def _find_int4(x: Any, w: Int4Weights, out: Any, stream: int | None) -> Call:
    library = _libraries[type(w.w)]
    return finder(library)(x, w.w, out, stream, _kept_beside[_beside(library, w)])


def _beside(library: Library, w: Int4Weights) -> Any:
    """All that decides a call on int4 weights beside their packed matrix."""
    arrays = (w.w_scale,) if w.order is None else (w.w_scale, w.order)
    return w.shape, w.dtype, library.identity(*arrays)


def _operands(
    library: Library, x: Any, w: Any, residual: Any, x_scale: Any, w_scale: Any, y_scale: Any, out: Any
) -> tuple[dict[str, Any], dict[str, View]]:
    """The arrays by operand, and each as a kernel sees it; numbers among the scales become arrays beside x."""
    known: dict[str, str] = {}
    given = {"x": x, "w": w}
    if isinstance(w, Int4Weights):
        if w_scale is not None:
            raise InputError("int4 weights have scales of their own; w_scale has no place beside them")
        given, known = {"x": x, "w": w.w, "w_scale": w.w_scale}, {"w": w.format, "w_scale": "fp16"}
        if w.order is not None:
            given["order"], known["order"] = w.order, INDEX
    given |= {"residual": residual, "x_scale": x_scale, "y_scale": y_scale, "y": out}
    if w_scale is not None:
        given["w_scale"] = w_scale
    if missing := [name for name in ("x", "w") if given[name] is None]:
        raise InputError(f"{missing[0]} must be given")
    given = {name: array for name, array in given.items() if array is not None}
    described: dict[str, View] = {}
    for name, array in given.items():
        if name in _SCALES and is_number(array):
            given[name], described[name] = library.number(array, name, described["x"].device)
        else:
            described[name] = library.describe(array, spoken(name), known.get(name, ""), written=name == "y")
    return given, described


@lru_cache(maxsize=4096)
def problem_of(request: LinearRequest) -> Linear:
    """The problem of a request; raises InputError where its arrays do not belong together."""
    kinds = {name: (shape, form) for name, shape, form in request.kinds}
    (x_shape, x_format), (w_shape, w_format) = kinds["x"], kinds["w"]
    w_shape = request.matrix or w_shape
    if len(w_shape) != 2 or not x_shape:
        raise InputError(f"x must be [..., k] and w [n, k]; x is {list(x_shape)} and w is {list(w_shape)}")
    m, (n, k) = prod(x_shape[:-1]), w_shape  # m may be 0: what is left of the layer is then checked for one row
    if x_shape[-1] != k:
        raise InputError(f"x [..., k] and w [n, k] must share k; x is {list(x_shape)} and w is {list(w_shape)}")
    if request.swiglu and "residual" in kinds:
        raise InputError("a linear layer ends with a residual or with swiglu, not with both")
    output = kinds["y"][1] if "y" in kinds else request.output
    if request.output not in ("", output):
        raise InputError(f"out is in {output} and output asks for {request.output}")
    problem = Linear(
        max(m, 1),
        n,
        k,
        weights=w_format,
        activations="fp8" if x_format == w_format == "fp8" else "",
        output=output,
        scales="none" if request.matrix else _scales({name: shape for name, (shape, _) in kinds.items()}, m, n, k),
        accumulate=request.accumulate,
        epilogue="swiglu" if request.swiglu else "residual" if "residual" in kinds else "none",
        offset=request.offset,
        order="given" if "order" in kinds else "same",
    )
    if problem.activations != x_format:
        raise InputError(f"w in {w_format} needs x in {problem.activations}; x is in {x_format}")
    y_shape = (*x_shape[:-1], problem.columns)
    wanted = {**{name: o[:2] for name, o in problem.inputs.items()}, "y": (y_shape, problem.output)}
    if unwanted := [name for name in kinds if name not in wanted]:
        raise InputError(f"{unwanted[0]} has no place here: x is in {x_format}, w in {w_format}, y in {problem.output}")
    if missing := [name for name in problem.inputs if name not in kinds]:
        raise InputError(f"{missing[0]} must be given where other scales are")
    for name in kinds.keys() - {"x", "w"}:
        have, (shape, form) = kinds[name], wanted[name]
        if name == "residual":
            shape = y_shape
        if name == "x_scale" and problem.x_row_scales:
            shape = (m,)
        fits = prod(have[0]) == prod(shape) if name.endswith("scale") else have[0] == shape
        if not fits or have[1] != form:
            raise InputError(f"{spoken(name)} must be {list(shape)} in {form}; it is {list(have[0])} in {have[1]}")
    return problem


def _scales(shapes: dict[str, tuple[int, ...]], m: int, n: int, k: int) -> str:
    """Whose scales the given ones are; raises InputError where they are of no kind."""
    rows, (blocks_n, blocks_k) = {"x_scale": m, "w_scale": n}, (-(-n // BLOCK), -(-k // BLOCK))
    given = {name: shapes[name] for name in rows if name in shapes}
    sizes = {name: prod(shape) for name, shape in given.items()}
    if not given:
        return "none"
    if all(size == 1 for size in sizes.values()):
        return "tensor"
    if all(size == rows[name] for name, size in sizes.items()):
        return "row"
    if sizes == {"x_scale": 1, "w_scale": n}:
        return "channel"
    blocks = len(given) == 2 and given["w_scale"] == (blocks_n, blocks_k) and given["x_scale"][-1:] == (blocks_k,)
    if blocks and sizes["x_scale"] == m * blocks_k:
        return "block"
    have = " and ".join(f"{name} is {list(given[name])} for {rows[name]:,} rows" for name in given)
    raise InputError(f"scales have one element each, or one for each row, or one for each block of {BLOCK}; {have}")


@lru_cache(maxsize=1024)
def _bound(problem: Linear, device: int, stream: int) -> "DeviceBound":
    """One a problem, GPU and stream: two streams must not share a workspace."""
    return on_gpu(problem, device, stream, given=("order",))
