import numpy as np

import lab

SOURCE, ENTRY = "gemm.cu", "gemm"
M, N, K = 30, 40, 50


def launch(rng):
    a, b = rng.standard_normal((M, K), np.float32), rng.standard_normal((K, N), np.float32)
    arrays = [lab.In("a", a), lab.In("b", b), lab.Out("c", (M, N), "float32")]
    return lab.Launch(grid=(3, 2), block=(16, 16), args=[*arrays, M, N, K])


def reference(arrays):
    a, b = arrays["a"].astype(float), arrays["b"].astype(float)
    return {"c": (a @ b, K * 2.0**-24 * (abs(a) @ abs(b)))}  # K fused multiply-adds, each rounded once
