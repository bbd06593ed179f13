"""Calls of lab.attention that its tests share: dense, packed, paged, latent, and parts of a projection."""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

BF16, FP8 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)


def arrays(*shapes: tuple[int, ...], dtype: Any = BF16) -> list[NDArray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32).astype(dtype) for shape in shapes]


Q, K, V = arrays((2, 3, 4, 8), (2, 5, 2, 8), (2, 5, 2, 8))
ROWS, K_ROWS = arrays((6, 4, 8), (6, 2, 8))
(CACHE,) = arrays((9, 2, 2, 4, 8))
STARTS, LENS = np.array([0, 2, 6], np.int32), np.array([2, 4], np.int32)
TABLE = np.array([[1, 2], [8, 3]], np.int32)
PACKED: dict[str, Any] = {"q": ROWS, "k": K_ROWS, "v": K_ROWS, "q_starts": STARTS, "kv_lens": LENS}
PAGED: dict[str, Any] = {"q": Q, "k": CACHE, "block_table": TABLE, "kv_lens": LENS}
LATENT: dict[str, Any] = {"q": Q, "k": K[:, :, 0].copy(), "latent": 4}
(QKV,) = arrays((2, 5, 8, 8))
VIEWS: dict[str, Any] = {"q": QKV[:, :, :4], "k": QKV[:, :, 4:6], "v": QKV[:, :, 6:]}
