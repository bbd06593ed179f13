from pathlib import Path

import numpy as np

import lab

SOURCE, ENTRY = "pipeline.cu", "pipeline"
INCLUDES = [Path("..") / ".."]  # where ptx/ is, the headers of the instructions
TILES, ROWS, COLUMNS = 5, 8, 32


def launch(rng):
    x = lab.In("x", rng.standard_normal((TILES * ROWS, COLUMNS), np.float32))
    tiles = lab.TensorMap(x, box=(ROWS, COLUMNS))
    return lab.Launch(grid=1, block=64, args=[tiles, lab.Out("sums", COLUMNS, "float32"), np.int32(TILES)])


def reference(arrays):
    x = arrays["x"].astype(float)
    return {"sums": (x.sum(axis=0), len(x) * 2.0**-24 * abs(x).sum(axis=0))}  # an addition a row, each rounded once
