"""Sparse products for mma.sp: drawn operands, their fragments and metadata of PTX ISA 9.0, 9.7.14.6, a kernel, sums."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import lab
from lab.emulation.check import Check

LANES = np.arange(32)
GROUP, NUMBER = LANES // 4, LANES % 4  # of a lane: its group of four, its place there
DTYPES = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16), "tf32": np.dtype(np.float32),
          "s8": np.dtype(np.int8), "u8": np.dtype(np.uint8), "e4m3": np.dtype(ml_dtypes.float8_e4m3fn)}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """A sparse product: type of A and B, columns of A, type of the sums, choices of the selector."""

    kind: str
    k: int
    sums: str
    selectors: int

    @property
    def chosen(self) -> int:
        """Nonzeros of a chunk, of twice as many columns."""
        return 1 if self.kind == "tf32" else 2


FORMS = [
    Form("f16", 16, "f16", 4), Form("f16", 16, "f32", 4), Form("f16", 32, "f16", 2), Form("f16", 32, "f32", 2),
    Form("bf16", 16, "f32", 4), Form("bf16", 32, "f32", 2), Form("tf32", 8, "f32", 4), Form("tf32", 16, "f32", 2),
    Form("s8", 32, "s32", 2), Form("s8", 64, "s32", 1), Form("u8", 64, "s32", 1), Form("e4m3", 64, "f32", 1),
]  # fmt: skip


def words(values: NDArray) -> NDArray[np.uint32]:
    """[..., n] elements as 32-bit registers, the first in the lowest bits."""
    registers: NDArray[np.uint32] = np.ascontiguousarray(values).view(np.uint32)
    return registers


def fragments(packed: NDArray, b: NDArray) -> NDArray[np.uint32]:
    """Registers [lane, number] of A [16, k / 2] and of B [k, 8]."""
    a, w = words(packed), words(b.T)  # columns of registers
    registers = [a[GROUP + 8 * (i % 2), NUMBER + 4 * (i // 2)] for i in range(a.shape[1] // 2)]
    registers += [w[GROUP, NUMBER + 4 * i] for i in range(w.shape[1] // 4)]
    return np.stack(registers, axis=1)


def metadata(form: Form, where: NDArray, selector: int) -> NDArray[np.uint32]:
    """The register of each lane; `where` [16, chunks, nonzeros] are places in a chunk. Lanes not selected hold ones."""
    nibbles = np.zeros(where.shape[:2], np.uint32)
    if form.kind == "tf32":  # a place is a pair of halves
        nibbles[:] = np.where(where[:, :, 0] == 0, 0b0100, 0b1110)
    else:
        nibbles[:] = where[:, :, 0] | where[:, :, 1] << 2
    out = np.full(32, 0xFFFFFFFF, np.uint32)
    shifts = 4 * np.arange(8, dtype=np.uint32)
    for group in range(8):
        if DTYPES[form.kind].itemsize > 1:  # a lane: four nibbles of a row, four of the row eight further on
            held = [nibbles[[group, group + 8], 4 * j : 4 * j + 4].ravel() for j in range(nibbles.shape[1] // 4)]
        else:  # a lane: eight nibbles of a row
            held = [nibbles[row, 8 * j : 8 * j + 8] for j in range(nibbles.shape[1] // 8) for row in (group, group + 8)]
        for j, eight in enumerate(held):
            out[4 * group + len(held) * selector + j] = np.bitwise_or.reduce(eight << shifts)
    return out


def sums_of(product: NDArray) -> NDArray:
    """D [lane, number] of a product [16, 8] with 1 added, as PTX lays out C and D."""
    i = np.arange(4)
    laid: NDArray = (product + 1)[GROUP[:, None] + 8 * (i // 2), 2 * NUMBER[:, None] + i % 2]
    return laid


def kernel_text(form: Form, inputs: int, selector: int, ordered: bool) -> str:
    """PTX of a warp that multiplies the registers of its lanes, `inputs` each (A, B, metadata); C is 1."""
    sums = 2 if form.sums == "f16" else 4
    one = {"f16": "0x3c003c00", "f32": "0f3F800000", "s32": "1"}[form.sums]
    word = "f32" if form.sums == "f32" else "b32"
    half = (inputs - 1) // 2  # A has twice the rows of B, and half the columns
    total = ", ".join(f"%sum{i}" for i in range(sums))
    a, b = (", ".join(f"%x{i}" for i in span) for span in (range(half), range(half, inputs - 1)))
    body = [f"mov.{word} %sum{i}, {one};" for i in range(sums)]
    body += [f"ld.global.b32 %x{i}, [%from+{4 * i}];" for i in range(inputs)]
    body += [
        f"mma.{'sp::ordered_metadata' if ordered else 'sp'}.sync.aligned.m16n8k{form.k}.row.col"
        f".{form.sums}.{form.kind}.{form.kind}.{form.sums}",
        f"{{{total}}}, {{{a}}}, {{{b}}}, {{{total}}}, %x{inputs - 1}, {selector:#x};",
    ]
    body += [f"st.global.{word} [%to+{4 * i}], %sum{i};" for i in range(sums)]
    return "\n".join(
        [
            ".version 8.5\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 k_0, .param .u64 k_1)\n{",
            f".reg .b32 %x<{inputs}>, %lane; .reg .{word} %sum<4>; .reg .b64 %from, %to; mov.u32 %lane, %tid.x;",
            f"ld.param.u64 %from, [k_0]; mad.wide.u32 %from, %lane, {4 * inputs}, %from;",
            f"ld.param.u64 %to, [k_1]; mad.wide.u32 %to, %lane, {4 * sums}, %to;",
            *body,
            "ret;\n}",
        ]
    )


def emulate(
    form: Form, registers: NDArray[np.uint32], selector: int, expected: NDArray | None = None, ordered: bool = True
) -> Check:
    """A warp multiplies what lies in `registers` [lane, number]; D is to be as expected."""
    text = kernel_text(form, registers.shape[1], selector, ordered)
    kind = {"f16": "float16", "f32": "float32", "s32": "int32"}[form.sums]

    def launch(_rng: np.random.Generator) -> lab.Launch:
        return lab.Launch(grid=1, block=32, args=[lab.In("x", registers), lab.Out("d", (32, 4), kind)])

    def reference(_arrays: object) -> dict[str, object]:
        return {"d": (sums_of(expected), 0)}

    return lab.emulate(text, "k", launch, seeds=1, reference=None if expected is None else reference)


@dataclass(frozen=True)
class Drawn:
    """Inputs of a form, and what comes of them; every product and sum is exact."""

    form: Form
    packed: NDArray  # A [16, k / 2]
    where: NDArray[np.int64]  # [16, chunks, nonzeros]
    b: NDArray

    @property
    def expected(self) -> NDArray[np.float64]:
        form = self.form
        chunk = 2 * form.chosen
        dense = np.zeros((16, form.k // chunk, chunk))
        np.put_along_axis(dense, self.where, self.packed.astype(np.float64).reshape(self.where.shape), axis=2)
        product: NDArray[np.float64] = dense.reshape(16, form.k) @ self.b.astype(np.float64)
        return product

    def registers(self, selector: int) -> NDArray[np.uint32]:
        told = metadata(self.form, self.where, selector)[:, None]
        return np.concatenate([fragments(self.packed, self.b), told], axis=1)


def draw(form: Form, seed: int, ordered: bool = True) -> Drawn:
    rng = np.random.default_rng(seed)
    low, dtype, chunks = 0 if form.kind == "u8" else -4, DTYPES[form.kind], form.k // (2 * form.chosen)
    places = rng.permuted(np.tile(np.arange(2 * form.chosen), (16, chunks, 1)), axis=2)[:, :, : form.chosen]
    return Drawn(
        form,
        rng.integers(low, 5, (16, form.k // 2)).astype(dtype),
        np.sort(places, axis=2) if ordered else places,
        rng.integers(low, 5, (form.k, 8)).astype(dtype),
    )
