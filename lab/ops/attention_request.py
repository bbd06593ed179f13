"""What the shapes and options of a call of `lab.attention` ask for: a problem, or one sentence why there is none."""

from collections.abc import Mapping
from functools import lru_cache
from math import inf
from typing import NamedTuple

from lab.ops.arrays import INDEX, is_number, single
from lab.ops.calls import spoken
from lab.problems import Attention
from sim.errors import InputError

SCALES = ("k_scale", "v_scale", "q_scale")
NUMBER = "number"  # the kind of a scale that is no array

Shapes = Mapping[str, tuple[int, ...]]  # as callers name the arrays


class AttentionRequest(NamedTuple):
    """All that decides how a call runs. `kinds` are each array's name, as callers name it, shape, format and pitch."""

    kinds: tuple[tuple[str, tuple[int, ...], str, int], ...]
    causal: bool = True
    window: int = 0
    scale: float = 0.0
    max_q_len: int | None = None
    max_kv_len: int | None = None
    latent: int = 0
    lse: bool = False


class Posed(NamedTuple):
    """A problem, and by its operands what callers name them."""

    problem: Attention
    names: dict[str, str]


class Queries(NamedTuple):
    """What q says, and q_starts; `rows` are q's where it is packed."""

    batch: int
    q_len: int
    heads: int
    dim: int
    rows: int


class Keys(NamedTuple):
    """What k says, and the block table; `pool` and `row_pages` as in Attention, `starts` names what keys start at."""

    kv_heads: int
    kv_len: int
    page: int = 0
    pool: int = 0
    row_pages: int = 0
    starts: str = "kv_starts"


@lru_cache(maxsize=4096)
def posed(request: AttentionRequest) -> Posed:
    """The problem of a request; raises InputError where its arrays do not belong together."""
    kinds = {name: (shape, form) for name, shape, form, _ in request.kinds}
    shapes = {name: shape for name, shape, _, _ in request.kinds}
    q, activations = _queries(request, shapes), kinds["q"][1]
    k, kv = _keys(request, shapes, q), kinds["k"][1]
    if kv not in (activations, "fp8"):
        raise InputError(f"k must be in {activations} as q is, or in fp8; it is in {kv}")
    problem = Attention(
        max(q.batch, 1),  # of no sequences, or queries, what is left is checked for one
        q.heads,
        k.kv_heads,
        q.dim,
        max(q.q_len, 1),
        k.kv_len,
        causal=request.causal,
        kv=kv,
        page=k.page,
        latent=request.latent,
        activations=activations,
        window=request.window,
        lse=request.lse or "lse" in kinds,
        scale=request.scale,
        q_rows=q.rows,
        pool=k.pool,
        row_pages=k.row_pages,
        uniform="q_starts" not in kinds and "kv_lens" not in kinds,
        packed=_is_packed(request, q, k),
    )
    scale = ((k.kv_heads,), "fp32")
    wanted = {
        "q": kinds["q"],
        "k": ((*shapes["k"][:-1], q.dim), kv),
        "q_starts": ((q.batch + 1,), INDEX),
        "kv_lens": ((q.batch,), INDEX),
        "y": ((*shapes["q"][:-1], problem.value_dim), problem.output),
        "lse": (shapes["q"][:-1], "fp32"),
    }
    wanted |= {name: scale for name in SCALES if name in problem.inputs}
    wanted |= {"v": wanted["k"]} if "v" in problem.inputs else {}
    wanted |= {"block_table": ((q.batch, k.row_pages), INDEX)} if k.page else {}
    for name, (shape, form) in kinds.items():
        if name not in wanted:
            raise InputError(f"{name} has no place here: {_why_not(name, kv)}")
        if form != NUMBER and wanted[name] != (shape, form):
            legal, legal_form = wanted[name]
            raise InputError(f"{spoken(name)} must be {list(legal)} in {legal_form}; it is {list(shape)} in {form}")
    if "v" in wanted and "v" not in kinds:
        raise InputError("v must be given, unless k is a paged cache with its block_table, or latent")
    operands = {name: name for name in problem.inputs | problem.outputs}
    if k.page:
        operands["cache"] = "k"
    else:
        operands["kv_starts"] = k.starts
    return Posed(problem, operands)


def _why_not(name: str, kv: str) -> str:
    """Why an array has no place in a call whose keys are in a format."""
    if name in SCALES and kv != "fp8":
        return "scales are for a cache in fp8"
    return "it is for queries in fp8" if name == "q_scale" else "k holds the values too"


def may_lie_apart(name: str, paged: bool) -> bool:
    """Whether the rows of an array may be parts of longer ones."""
    return name == "q" or (name in ("k", "v") and not paged)


def _is_packed(request: AttentionRequest, q: Queries, k: Keys) -> bool:
    """Whether rows lie apart; raises InputError where they are not all those of one packed projection."""
    row = (q.heads + 2 * k.kv_heads) * q.dim
    pitches = {name: pitch for name, _, _, pitch in request.kinds if may_lie_apart(name, k.page > 0)}
    for name, pitch in pitches.items():
        if any(pitches.values()) and pitch != row:
            there = f"those of {name} are {pitch:,} elements apart" if pitch else f"{name} is dense"
            raise InputError(
                f"q, k and v must be dense, or parts of rows of {row:,} elements, as one projection to heads + "
                f"2 kv_heads has them; {there}"
            )
    return any(pitches.values())


def scale_of(scale: float | None) -> float:
    """A request's scale; raises InputError where it is no positive number."""
    if scale is None:
        return 0.0
    if not is_number(scale) or not 0 < scale < inf:
        raise InputError(f"scale must be a number above 0; it is {scale!r:.40}")
    single(scale, "scale")  # as which it multiplies
    return float(scale)


def _queries(request: AttentionRequest, shapes: Shapes) -> Queries:
    q, starts = shapes["q"], shapes.get("q_starts")
    if starts is None:
        if len(q) != 4:
            raise InputError(f"q must be [batch, q_len, heads, dim], or packed beside q_starts; it is {list(q)}")
        batch, q_len, heads, dim = q
        return Queries(batch, _only("max_q_len", request.max_q_len, q_len), heads, dim, 0)
    if len(q) != 3:
        raise InputError(f"q must be [tokens, heads, dim] beside q_starts; it is {list(q)}")
    if len(starts) != 1 or not starts[0]:
        raise InputError(f"q_starts must be [batch + 1]; it is {list(starts)}")
    tokens, heads, dim = q
    return Queries(starts[0] - 1, min(tokens, _most("max_q_len", request.max_q_len, tokens)), heads, dim, tokens)


def _keys(request: AttentionRequest, shapes: Shapes, q: Queries) -> Keys:
    k, table, latent = shapes["k"], shapes.get("block_table"), request.latent
    axes = 1 if latent else 2  # of one token
    packed = "q_starts" in shapes and len(k) == 1 + axes
    if (table is not None or packed) and "kv_lens" not in shapes:
        raise InputError("kv_lens must be given beside a block_table, and beside packed keys")
    if table is not None:
        return _paged(request, k, table)
    if packed:
        kv_len = _most("max_kv_len", request.max_kv_len, max(q.q_len, 1))
        return Keys(1 if latent else k[1], kv_len, pool=k[0], starts="q_starts")
    if len(k) != 2 + axes or k[0] != q.batch:
        subject, token = ("latent k", "dim") if latent else ("k", "kv_heads, dim")
        raise InputError(
            f"{subject} must be [{q.batch}, kv_len, {token}], or [rows, {token}] beside q_starts, or paged beside "
            f"block_table; it is {list(k)}"
        )
    return Keys(1 if latent else k[2], _only("max_kv_len", request.max_kv_len, k[1]))


def _paged(request: AttentionRequest, k: tuple[int, ...], table: tuple[int, ...]) -> Keys:
    latent, most = request.latent, request.max_kv_len
    if len(k) != (3 if latent else 5) or (not latent and k[1] != 2):
        legal = "latent k must be [pages, page, dim]" if latent else "k must be [pages, 2, kv_heads, page, dim]"
        raise InputError(f"{legal} beside block_table; it is {list(k)}")
    if len(table) != 2:
        raise InputError(f"block_table must be [batch, pages of a sequence]; it is {list(table)}")
    page, columns = k[-2], table[1]
    kv_len = _most("max_kv_len", most, columns * page)
    if kv_len > columns * page:
        raise InputError(f"block_table has {columns:,} pages of {page:,} tokens a sequence; max_kv_len = {kv_len:,}")
    return Keys(1 if latent else k[2], kv_len, page, pool=k[0], row_pages=columns)


def _most(name: str, given: int | None, usual: int) -> int:
    """The greatest length that a call names, or the usual one."""
    if given is not None and given < 1:
        raise InputError(f"{name} must be at least 1; it is {given:,}")
    return usual if given is None else given


def _only(name: str, given: int | None, length: int) -> int:
    """The length that an array has, which a call may repeat."""
    if given not in (None, length):
        raise InputError(f"{name} must be {length:,}, as the array has it, or left out; it is {given:,}")
    return length
