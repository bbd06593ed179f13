"""Decoding of tensor-core instructions and of what moves their fragments."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sim.emulator import decode_wmma, fragments, isa
from sim.emulator.immediates import number_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.emulator.decode import Decoder

Parts = tuple[str, ...]

_KINDS = {"bf16": isa.BF16, "f16": isa.F16, "e4m3": isa.E4M3, "e5m2": isa.E5M2, "tf32": isa.TF32}
# Choices of the lanes of each four that hold the metadata of a sparse A, by its type and columns.
_SELECTORS = {("f16", 16): 4, ("f16", 32): 2, ("bf16", 16): 4, ("bf16", 32): 2, ("tf32", 8): 4, ("tf32", 16): 2,
              **{(kind, k): 64 // k for kind in ("s8", "u8", "e4m3", "e5m2") for k in (32, 64)}}  # fmt: skip


def _ldmatrix(d: Decoder, parts: Parts, operands: Parts) -> None:
    if "m8n8" not in parts or parts[-1] != "b16":
        raise d.fail()
    start, count = d.pooled([d.register(n.strip()) for n in operands[0].strip("{}").split(",")])
    base, offset = d.address(operands[1])
    d.emit(isa.LDMATRIX, a=base, f0=offset, f1=isa.SHARED, f2=int("trans" in parts), pool=start, count=count)


def _stmatrix(d: Decoder, parts: Parts, operands: Parts) -> None:
    if "m8n8" not in parts or parts[-1] != "b16":
        raise d.fail()
    start, count = d.pooled(d.rows_of(operands[1], "b32"))
    base, offset = d.address(operands[0])
    d.emit(isa.STMATRIX, a=base, f0=offset, f1=isa.SHARED, f2=int("trans" in parts), pool=start, count=count)


def _wgmma(d: Decoder, parts: Parts, operands: Parts) -> None:
    what = parts[0]
    if what == "fence":
        d.emit(isa.WGMMA_FENCE)
    elif what == "commit_group":
        d.emit(isa.WGMMA_COMMIT)
    elif what == "wait_group":
        d.emit(isa.WGMMA_WAIT, f0=int(operands[0], 0))
    elif what == "mma_async" and "sp" not in parts:
        shape = next(p for p in parts if re.fullmatch(r"m64n\d+k\d+", p))
        n, k = (int(x) for x in re.fullmatch(r"m64n(\d+)k(\d+)", shape).groups())  # type: ignore[union-attr]
        to, a_kind, b_kind = parts[parts.index(shape) + 1 :][:3]
        if to != "f32" or a_kind not in _KINDS or b_kind not in _KINDS:
            raise d.fail("has operand types that are not supported")
        accumulators = [d.register(r.strip()) for r in operands[0].strip("{}").split(",")]
        if len(accumulators) != n // 2:
            raise d.fail(f"has {len(accumulators)} accumulators; {n // 2} are expected")
        from_registers = operands[1].startswith("{")
        a_rows = d.rows_of(operands[1], "b32") if from_registers else []
        start, count = d.pooled(accumulators + a_rows)
        flags = operands[4:]
        negate = int(flags[0]) == -1 if flags else False
        negate_b = int(flags[1]) == -1 if flags else False
        transpose = [int(f) for f in flags[2:]]
        if from_registers:
            transpose = [0, *transpose]
        bits = negate + 2 * negate_b + 16 * from_registers
        bits += 4 * (transpose[0] if transpose else 0) + 8 * (transpose[1] if len(transpose) > 1 else 0)
        scale = operands[3]
        d.emit(isa.WGMMA, a=-1 if from_registers else d.value(operands[1]), b=d.value(operands[2]),
               c=d.predicate(scale), d=n, f0=k, f1=_KINDS[a_kind], f2=int(bits), f3=_KINDS[b_kind], pool=start,
               count=count)  # fmt: skip
    else:
        raise d.fail()


def _mma(d: Decoder, parts: Parts, operands: Parts) -> None:
    types = tuple(p for p in parts if p in decode_wmma.FORMATS)
    m, n, k = decode_wmma.shape_of(d, parts)
    refused = {"xor", "and", "block_scale"} & set(parts) or ("f16" in types and k == 4)
    if refused or parts[parts.index(f"m{m}n{n}k{k}") + 1 :][:2] != ("row", "col") or len(types) != 4 or n != 8:
        raise d.fail()
    sparse = {"sp", "sp::ordered_metadata"} & set(parts)
    if sparse or (m, types[0], types[3]) != (16, "f32", "f32"):
        flags = decode_wmma.saturate(parts) | (_sparsity(d, parts, operands, (m, k), types[1]) if sparse else 0)
        decode_wmma.emit_product(d, {"f0": k, "f2": 256 * m + n}, operands, types, flags)
        return
    rows = [d.register(r.strip()) for r in operands[0].strip("{}").split(",")]
    a_rows, b_rows, c_rows = (d.rows_of(o, "f32" if i == 2 else "b32") for i, o in enumerate(operands[1:4]))
    start, count = d.pooled(rows + a_rows + b_rows + c_rows)
    d.emit(isa.MMA, f0=k, f1=_KINDS[types[1]], f2=len(a_rows), f3=_KINDS[types[2]], pool=start, count=count)


def _sparsity(d: Decoder, parts: Parts, operands: Parts, extent: tuple[int, int], kind: str) -> int:
    """The flags of a product whose A is sparse: how its metadata is to be read."""
    m, k = extent
    selectors = _SELECTORS.get((kind, k), 0) if m == 16 else 0
    selector = number_of(operands[5], "b32")
    if not selectors:
        raise d.fail()
    if selector is None or selector >= selectors:
        raise d.fail(f"has a sparsity selector that is no number below {selectors}")
    return fragments.SPARSE | fragments.ORDERED * ("sp" not in parts) | fragments.SELECTOR * selector


HANDLERS: dict[str, Callable[[Decoder, Parts, Parts], None]] = {
    "ldmatrix": _ldmatrix,
    "stmatrix": _stmatrix,
    "wgmma": _wgmma,
    "mma": _mma,
}
