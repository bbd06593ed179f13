"""int4 groups: the packed layout, quantising, and the layouts of other programs."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.errors import InputError
from sim.int4 import (
    GGUF_BYTES,
    GGUF_K_BYTES,
    Groups,
    from_awq,
    from_gguf,
    from_gguf_k,
    from_gptq,
    pack,
    quantise,
    shapes,
    unpack,
)

GROUPS = (32, 64, 128)


def drawn(n: int, k: int, group: int, seed: int, zero_points: bool = False) -> Groups:
    rng = np.random.default_rng(seed)
    scale, offset = (rng.standard_normal((n, -(-k // group))).astype(np.float16) for _ in "so")
    if zero_points:
        offset = rng.integers(0, 17, offset.shape).astype(np.float16)
    return Groups(rng.integers(0, 16, (n, k), np.uint8), scale, offset, group, zero_points)


@given(st.integers(1, 130), st.integers(1, 200), st.sampled_from(GROUPS), st.integers(0, 9), st.booleans())
def test_packing_round_trips(n: int, k: int, group: int, seed: int, zero_points: bool) -> None:
    groups = drawn(n, k, group, seed, zero_points)
    w, w_scale = pack(groups)
    assert (w.shape, w_scale.shape) == shapes(n, k, group)
    back = unpack(w, w_scale, n, k, group, zero_points)
    for name in ("q", "scale", "offset"):
        assert np.array_equal(getattr(back, name), getattr(groups, name))
    assert back.zero_points == zero_points


@pytest.mark.parametrize("zero", [-1.0, 7.5, 128.0, np.nan, np.inf])
def test_zero_points_are_whole_numbers(zero: float) -> None:
    groups = drawn(3, 64, 32, seed=1, zero_points=True)
    groups.offset[2, 1] = zero
    with pytest.raises(InputError, match=r"zero points are whole numbers from 0 to 127; found"):
        replace(groups)


def test_a_lane_finds_its_fragment_in_its_own_16_bytes() -> None:
    groups = drawn(48, 128, 32, seed=1)
    w, w_scale = pack(groups)
    for tile, step, lane in ((0, 0, 0), (1, 1, 13), (2, 0, 31), (2, 1, 6)):
        row, column = 16 * tile + lane // 4, 64 * step + 2 * (lane % 4)
        words = w[tile, step].view("<u4")[4 * lane : 4 * lane + 4]
        for s, word in enumerate(words):
            for register, (down, right) in enumerate(((0, 0), (8, 0), (0, 8), (8, 8))):
                pair = int(word) >> 4 * register & 0x000F000F
                here = groups.q[row + down, column + 16 * s + right :][:2]
                assert (pair & 15, pair >> 16) == tuple(here)
        g = lane // 4
        four = w_scale[tile, 3].reshape(8, 4)[g].view(np.float16)
        rows = (16 * tile + g, 16 * tile + g + 8)
        assert list(four) == [v for r in rows for v in (groups.scale[r, 3], groups.offset[r, 3])]


def test_padding_is_zero() -> None:
    w, w_scale = pack(Groups(np.full((1, 1), 15, np.uint8), *[np.ones((1, 1), np.float16)] * 2, 32))
    assert (np.count_nonzero(w), np.count_nonzero(w_scale)) == (1, 2)


@given(st.integers(1, 5), st.integers(1, 200), st.sampled_from(GROUPS), st.integers(0, 9))
def test_quantising_errs_by_half_a_step_and_two_roundings(n: int, k: int, group: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((n, k), np.float32)
    groups = quantise(values, group)
    scale, offset = groups.each(groups.scale), groups.each(np.abs(groups.offset))
    # The range was cut into steps of the exact scale and min; both are within half an fp16 ulp of theirs.
    bound = scale / 2 + 15 * scale * 2.0**-11 + offset * 2.0**-11 + 2.0**-20
    assert (np.abs(groups.values - values) <= bound).all()


def test_a_constant_group_and_zeros_are_kept() -> None:
    values = np.zeros((2, 64), np.float32)
    values[1] = 0.5
    assert np.array_equal(quantise(values, 32).values, values)


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e6])
def test_quantising_refuses_what_fp16_cannot_scale(value: float) -> None:
    with pytest.raises(InputError, match="must be finite"):
        quantise(np.float32([[value, 0.0]]), 32)


@given(st.floats(-9, 0), st.sampled_from(GROUPS), st.integers(0, 9))
def test_small_weights_are_quantised_as_well_as_others_or_refused(exponent: float, group: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((4, 150), np.float32)
    small = values * np.float32(10.0**exponent)
    groups = None
    with suppress(InputError):
        groups = quantise(small, group)
    if groups is None:
        assert exponent < -3  # 15 steps of fp16's smallest normal number, 2^-14, span 9.2e-4
        return
    step = quantise(values, group)
    worst = np.abs(step.values - values).max() / np.abs(values).max()
    # What fp16 may lose besides, 2^-10 of a group's range and least value, is at most 2^-8 of the largest weight.
    assert np.abs(groups.values - small).max() / np.abs(small).max() <= worst + 2.0**-8


@pytest.mark.parametrize("value", [1e-8, -3e-8, 2.0**-26])
def test_a_group_that_fp16_would_make_zero(value: float) -> None:
    values = np.ones((2, 64), np.float32)
    values[1, 32:] = value
    with pytest.raises(InputError, match=r"a group of weights of at most .* is too small for fp16"):
        quantise(values, 32)


@pytest.mark.parametrize("kind", GGUF_BYTES)
def test_blocks_of_a_gguf_file_are_taken_exactly(kind: str) -> None:
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    values = np.random.default_rng(0).standard_normal((6, 96), np.float32)
    raw = quants.quantize(values, GGMLQuantizationType[kind])
    groups = from_gguf(raw.reshape(6, 3, GGUF_BYTES[kind]), kind)
    assert np.array_equal(groups.values, quants.dequantize(raw, GGMLQuantizationType[kind]))


def words(nibbles: np.ndarray) -> np.ndarray:
    """int32 words of eight nibbles along the last axis, lowest first."""
    parts = nibbles.reshape(*nibbles.shape[:-1], -1, 8).astype(np.uint64)
    return (parts << np.arange(0, 32, 4, dtype=np.uint64)).sum(axis=-1).astype(np.uint32).view(np.int32)


@pytest.mark.parametrize("bias", [0, 1])
def test_gptq_is_taken_exactly(bias: int) -> None:
    rng = np.random.default_rng(2)
    q, zeros = rng.integers(0, 16, (64, 24), np.uint8), rng.integers(0, 16, (2, 24), np.uint8)
    scales = rng.random((2, 24)).astype(np.float16)
    groups = from_gptq(np.ascontiguousarray(words(q.T).T), words(zeros), scales, bias)
    expected = scales.astype(np.float64).repeat(32, 0) * (q - (zeros.repeat(32, 0) + float(bias)))
    assert groups.group == 32
    assert np.array_equal(groups.values, expected.T)  # a product of 11 and 5 bits fits float32


def test_awq_is_taken_exactly() -> None:
    rng = np.random.default_rng(3)
    q, zeros = rng.integers(0, 16, (128, 16), np.uint8), rng.integers(0, 16, (1, 16), np.uint8)
    scales = rng.random((1, 16)).astype(np.float16)
    order = np.concatenate([8 * j + np.array([0, 2, 4, 6, 1, 3, 5, 7]) for j in range(2)])
    groups = from_awq(words(q[:, order]), words(zeros[:, order]), scales)
    assert np.array_equal(groups.values, (scales.astype(np.float64) * (q - zeros.astype(float))).T)


@given(st.data())
def test_a_layer_s_groups_in_any_legal_order(data: st.DataObject) -> None:
    """Short last groups, one group for all columns, and a g_idx of whole blocks: values, column by column."""
    k = 8 * data.draw(st.integers(1, 40))
    group = data.draw(st.sampled_from((32, 64, 96, 128, 256, k)))
    groups = -(-k // group)
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    q, zeros = rng.integers(0, 16, (k, 8), np.uint8), rng.integers(0, 16, (groups, 8), np.uint8)
    scales = rng.random((groups, 8)).astype(np.float16).astype(data.draw(st.sampled_from(["f4", "f2", ">f2"])))
    of_column = np.arange(k) // group
    said = {"group": -1 if groups == 1 else group}
    if data.draw(st.booleans()):
        of_column = rng.permutation(groups)[of_column]  # act-order that keeps blocks together
        if data.draw(st.booleans()):
            of_column = rng.permutation(of_column)  # and one that does not
        said = {"g_idx": of_column.astype(np.int32)}
    if groups > 1 and group % 32:
        return
    found = from_gptq(np.ascontiguousarray(words(q.T).T), words(zeros), scales, 0, **said)
    expected = scales.astype(np.float64)[of_column] * (q - zeros.astype(np.float64)[of_column])
    assert found.group in GROUPS
    assert np.array_equal(found.values, expected.T)
    if "group" in said:
        packed = [np.ascontiguousarray(a) for a in (words(q), words(zeros))]
        awq = from_awq(*packed, scales, **said)
        assert awq.values.shape == found.values.shape


@pytest.mark.parametrize(
    ("k", "groups", "said", "says"),
    [
        (96, 2, {}, "96 columns in 2 groups are none of"),
        (192, 2, {}, "say how many with group="),
        (96, 2, {"group": 32}, "groups of 32 are not 2 groups"),
        (96, 2, {"group": 0}, "groups of 0 are not 2 groups"),
        (96, 2, {"group": -1}, "groups of -1 are not 2 groups"),
        (96, 2, {"group": 48}, "must be 32 or a multiple"),
        (96, 2, {"g_idx": np.arange(96) % 2}, "must be 32 or a multiple"),
        (64, 2, {"g_idx": np.arange(64)}, "g_idx is the group of each of 64 columns, 0 to 1"),
        (64, 2, {"g_idx": np.zeros(32, np.int32)}, "g_idx is the group of each of 64"),
        (64, 2, {"bias": 2}, "got bias = 2"),
    ],
)
def test_a_layer_that_cannot_be_taken_exactly(k: int, groups: int, said: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        from_gptq(
            np.zeros((k // 8, 8), np.int32), np.zeros((groups, 1), np.int32), np.ones((groups, 8), np.float16), **said
        )


@pytest.mark.parametrize("scale", [2.0**-26, 1e5, 0.1, np.inf, np.nan])
def test_a_scale_that_is_no_fp16_number(scale: float) -> None:
    w, zeros = np.zeros((16, 8), np.int32), np.zeros((1, 1), np.int32)
    with pytest.raises(InputError, match=r"fp16 holds exactly; .* does not fit"):
        from_gptq(w, zeros, np.full((1, 8), scale, np.float32))
    with pytest.raises(InputError, match="scales are floats; these are in int32"):
        from_gptq(w, zeros, np.ones((1, 8), np.int32))
    with pytest.raises(InputError, match="packed nibbles are a matrix in int32"):
        from_gptq(w.astype(np.int64), zeros, np.ones((1, 8), np.float16))


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(InputError, match="int4 values are 0 to 15; found 16"):
        Groups(np.full((1, 32), 16, np.uint8), *[np.ones((1, 1), np.float16)] * 2, 32)
    with pytest.raises(InputError, match=r"have \[1, 2\] scales and offsets"):
        Groups(np.zeros((1, 33), np.uint8), *[np.ones((1, 1), np.float16)] * 2, 32)
    with pytest.raises(InputError, match="scales and offsets in float16; got uint8, float32, float32"):
        Groups(np.zeros((1, 32), np.uint8), *[np.ones((1, 1), np.float32)] * 2, 32)
    w, w_scale = pack(drawn(64, 64, 32, 0))
    with pytest.raises(InputError, match="packed weights"):
        unpack(w, w_scale, 65, 64, 32)
    with pytest.raises(InputError, match=r"Q4_1 blocks are"):
        from_gguf(np.zeros((1, 1, 18), np.uint8), "Q4_1")
    with pytest.raises(InputError, match="need scales and zero points"):
        from_awq(np.zeros((8, 1), np.int32), np.zeros((1, 1), np.int32), np.zeros((2, 8), np.float16))


@pytest.mark.parametrize("wrong", [None, [[1]], "words", np.zeros((0, 8), np.int32), np.zeros((16, 8), np.int64)])
def test_what_is_no_matrix_of_packed_words(wrong: Any) -> None:
    words, zeros, scales = np.zeros((16, 8), np.int32), np.zeros((1, 1), np.int32), np.ones((1, 8), np.float16)
    for take in (from_gptq, from_awq):
        with pytest.raises(InputError, match="packed nibbles are"):
            take(wrong, zeros, scales)
    with pytest.raises(InputError, match="packed nibbles are"):
        from_gptq(words, wrong, scales)
    with pytest.raises(InputError, match="scales are a NumPy matrix"):
        from_gptq(words, zeros, scales.tolist())
    with pytest.raises(InputError, match="Q4_1 blocks are"):
        from_gguf(wrong, "Q4_1")
    for group in ("a", 2.5, True):
        with pytest.raises(InputError, match="group is a number of columns"):
            from_gptq(words, zeros, scales, group=group)


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_k_blocks_of_gguf_are_within_the_bound_of_their_two_roundings(n: int, blocks: int, seed: int) -> None:
    quants = pytest.importorskip("gguf", reason="the other reader needs the extra `model`").quants
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (n, blocks, GGUF_K_BYTES), np.uint8)
    d = rng.uniform(-1, 1, (n, blocks, 2)) * 2.0 ** rng.integers(-24, 3, (n, blocks, 1))
    raw[..., :4] = d.astype(np.float16).view(np.uint8)
    groups = from_gguf_k(raw)
    assert (groups.group, groups.zero_points, groups.q.shape) == (32, False, (n, blocks * 256))
    exact = quants.dequantize(raw.reshape(n, -1), gguf_type("Q4_K")).astype(np.float64)
    scale, offset = (np.abs(groups.each(part)).astype(np.float64) for part in (groups.scale, groups.offset))
    u, tiny = 2.0**-11, 2.0**-25
    exact_scale, exact_offset = ((part + tiny) * (1 + 2 * u) for part in (scale, offset))  # the rounded ones bound them
    bound = u * (15 * exact_scale + exact_offset) + 16 * tiny + 2.0**-22 * np.abs(exact)
    assert (np.abs(groups.values - exact) <= bound).all()
    assert len(np.unique(groups.q)) == 16


def gguf_type(name: str) -> Any:
    import gguf

    return gguf.GGMLQuantizationType[name]


def test_k_blocks_of_another_shape_are_refused() -> None:
    for blocks in (np.zeros((2, 3, 143), np.uint8), np.zeros((2, 144), np.uint8), np.zeros((2, 3, 144), np.int8)):
        with pytest.raises(InputError, match=r"Q4_K blocks are \[n, k / 256, 144\] bytes"):
            from_gguf_k(blocks)


class Elsewhere(np.lib.mixins.NDArrayOperatorsMixin):
    """An array that NumPy may only ask for what is its own, as CuPy's are: nothing turns it into NumPy's in silence."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("an implicit conversion")

    def __array_ufunc__(self, function: Any, method: str, *given: Any, **more: Any) -> Any:
        return _there(getattr(function, method)(*map(_here, given), **more))

    def __array_function__(self, function: Any, _: Any, given: Any, more: Any) -> Any:
        return _there(function(*[[*map(_here, a)] if isinstance(a, list) else _here(a) for a in given], **more))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.array, name)
        return (lambda *given, **more: _there(found(*given, **more))) if callable(found) else found

    def __getitem__(self, at: Any) -> Any:
        return _there(self.array[at])

    def __setitem__(self, at: Any, values: Any) -> None:
        assert isinstance(values, Elsewhere)
        self.array[at] = values.array

    def __bool__(self) -> bool:
        return bool(self.array)


def _here(value: Any) -> Any:
    return value.array if isinstance(value, Elsewhere) else value


def _there(value: Any) -> Any:
    return Elsewhere(value) if isinstance(value, np.ndarray | np.generic) else value


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K"])
def test_blocks_become_packed_groups_where_they_lie(kind: str) -> None:
    nbytes = GGUF_K_BYTES if kind == "Q4_K" else GGUF_BYTES[kind]
    raw = np.random.default_rng(0).integers(0, 60, (80, 3, nbytes), np.uint8)
    made = [from_gguf_k(a) if kind == "Q4_K" else from_gguf(a, kind) for a in (raw, Elsewhere(raw))]
    for ours, theirs in zip(*map(pack, made), strict=True):
        assert isinstance(theirs, Elsewhere)
        np.testing.assert_array_equal(theirs.array, ours)
