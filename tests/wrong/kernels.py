"""The deliberately wrong kernels beside this file: how each is launched, and what is wrong with it.

Each is compiled twice: as it stands, and with `schedule::fixed` true, which mends the one mistake and nothing else.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lab.compile import Target, compile_source
from sim.launch import Argument, Array, Launch, Role, Scalar, TensorMap
from sim.machine import Machine

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class WrongKernel:
    """One kernel: `name` is its file's stem and its entry, `hazard` the kind that must be reported of it."""

    name: str
    hazard: str
    arguments: tuple[Argument, ...]
    threads: int = 64
    ctas: int = 1
    cluster: int = 1

    @property
    def source(self) -> Path:
        return FOLDER / f"{self.name}.cu"

    @property
    def launch(self) -> Launch:
        return Launch(
            kernel=self.name,
            entry=self.name,
            problem=None,
            schedule=None,
            grid=(self.ctas, 1, 1),
            block=(self.threads, 1, 1),
            arguments=self.arguments,
            cluster=(self.cluster, 1, 1),
        )

    def compile(self, fixed: bool, machine: Machine, target: Target = "ptx") -> Path:
        """The compiled module of the wrong kernel or of its mended twin."""
        header = f"#pragma once\nnamespace schedule {{\nconstexpr bool fixed = {str(fixed).lower()};\n}}\n"
        return compile_source(self.source, header, machine, target).path

    def draw(self, seed: int) -> dict[str, NDArray]:
        """Fresh arrays: small numbers in inputs, zeros in what is read and written, ones' bits in outputs."""
        rng = np.random.default_rng(seed)
        return {a.name: _filled(a, rng) for a in self.launch.arrays}


def _filled(array: Array, rng: np.random.Generator) -> NDArray:
    if array.role is Role.OUT:
        return np.full(array.shape, -1, np.int8).repeat(array.storage.itemsize).view(array.storage).reshape(array.shape)
    if array.role is not Role.IN:
        return np.zeros(array.shape, array.storage)
    return rng.integers(0, 100, array.shape).astype(array.storage)


def _in(*shape: int, format: str = "int32") -> Array:
    return Array("x", Role.IN, shape, format)


def _out(*shape: int, format: str = "int32") -> Array:
    return Array("y", Role.OUT, shape, format)


def _rows(name: str, rows: int, columns: int) -> TensorMap:
    """A map that takes one row of a float array at a time."""
    return TensorMap(f"{name}_map", name, (rows, columns), (columns, 1), (1, columns))


ROW_IN = (_rows("x", 1, 64), _in(1, 64, format="fp32"), _out(64, format="fp32"))
ROWS_OUT = (_rows("y", 2, 64), _in(2, 64, format="fp32"), _out(2, 64, format="fp32"))
TILE = (_in(64, 64, format="bf16"), _out(128, 32, format="fp32"))
RING = (_rows("x", 7, 32), _in(7, 32, format="fp32"), _out(32, format="fp32"))
WARP = (_in(32), _out(32))
PAIR = (_in(64), _out(64))
SUM = (_in(3, 32), Array("sum", Role.INOUT, (32,), "int32"))
SPLIT = (
    _in(3, 64),
    Array("partial", Role.OUT, (3, 64), "int32"),
    Array("arrived", Role.WORKSPACE, (1,), "uint32"),
    _out(64),
)
RAGGED = (_in(50), _out(50), Scalar("n", 50))

WRONG = (
    WrongKernel("missing_syncthreads", "race on shared memory", PAIR),
    WrongKernel("buffer_reused_early", "race on shared memory", (_in(3, 64), _out(64))),
    WrongKernel("lost_update", "race on global memory", SUM, threads=32, ctas=3),
    WrongKernel("split_without_threadfence", "race on global memory", SPLIT, ctas=3),
    WrongKernel(
        "cp_async_not_awaited",
        "access before cp.async arrival",
        (_in(128, format="fp32"), _out(32, format="fp32")),
        threads=32,
    ),
    WrongKernel("tensor_load_not_awaited", "access before TMA arrival", ROW_IN),
    WrongKernel("mbarrier_wrong_parity", "access before TMA arrival", ROW_IN),
    WrongKernel("ring_slot_reused", "TMA overwrites data in use", (*RING, Scalar("steps", 7))),
    WrongKernel("ring_without_empty_wait", "mbarrier count", (*RING, Scalar("steps", 7))),
    WrongKernel("store_without_proxy_fence", "missing fence.proxy.async", ROWS_OUT),
    WrongKernel("bulk_source_overwritten", "bulk store source overwritten", ROWS_OUT),
    WrongKernel("bulk_group_not_committed", "bulk store source overwritten", ROWS_OUT),
    WrongKernel("mbarrier_count_too_high", "deadlock", ROW_IN),
    WrongKernel("mbarrier_count_too_low", "race on shared memory", (_in(96), _out(32)), threads=128),
    WrongKernel("mbarrier_arrived_twice", "mbarrier count", ROW_IN),
    WrongKernel(
        "mbarrier_not_published", "mbarrier not initialised", (*PAIR, Array("ready", Role.WORKSPACE, (1,), "uint32"))
    ),
    WrongKernel("mbarrier_without_init_fence", "mbarrier not published", ROW_IN),
    WrongKernel("expect_tx_too_many", "deadlock", ROW_IN),
    WrongKernel("expect_tx_too_few", "mbarrier bytes", ROW_IN),
    WrongKernel("circular_wait", "deadlock", PAIR),
    WrongKernel("barrier_skipped", "race on shared memory", PAIR),
    WrongKernel("divergent_lanes", "divergent barrier", PAIR),
    WrongKernel("shuffle_from_absent_lane", "shuffle from inactive lane", WARP, threads=32),
    WrongKernel("input_written", "input written", WARP, threads=32),
    WrongKernel("exit_before_store_has_read", "exit with work in flight", ROWS_OUT),
    WrongKernel("named_barrier_count", "barrier mismatch", PAIR),
    WrongKernel("global_load_out_of_bounds", "out of bounds", RAGGED, threads=32, ctas=2),
    WrongKernel("global_store_out_of_bounds", "out of bounds", RAGGED, threads=32, ctas=2),
    WrongKernel("shared_out_of_bounds", "out of bounds", PAIR),
    WrongKernel("misaligned_vector", "misaligned", (_in(32, 8), _out(32)), threads=32),
    WrongKernel("tensor_load_misaligned", "misaligned", ROW_IN),
    WrongKernel("uninitialised_shared", "uninitialised output", (_in(64), _out(32))),
    WrongKernel("uninitialised_output", "uninitialised output", WARP, threads=32),
    WrongKernel("uninitialised_branch", "uninitialised branch", WARP, threads=32),
    WrongKernel("uninitialised_address", "uninitialised address", WARP, threads=32),
    WrongKernel("unwritten_global", "uninitialised output", WARP, threads=32),
    WrongKernel("wgmma_without_proxy_fence", "missing fence.proxy.async", TILE, threads=128),
    WrongKernel("wgmma_without_fence", "missing wgmma.fence", TILE, threads=128),
    WrongKernel("wgmma_not_awaited", "wgmma registers in flight", TILE, threads=128),
    WrongKernel("wgmma_not_committed", "wgmma registers in flight", TILE, threads=128),
    WrongKernel("wgmma_accumulator_touched", "wgmma registers in flight", TILE, threads=128),
    WrongKernel("wgmma_tile_overwritten", "wgmma operand overwritten", TILE, threads=128),
    WrongKernel("setmaxnreg_by_one_warp", "setmaxnreg", (_in(128), _out(128)), threads=128),
    WrongKernel(
        "cluster_remote_race", "race on shared memory", (_in(2, 32), _out(2, 32)), threads=32, ctas=2, cluster=2
    ),
    WrongKernel(
        "store_async_not_awaited",
        "access before TMA arrival",
        (_in(2, 32, format="fp32"), _out(2, 32, format="fp32")),
        threads=32,
        ctas=2,
        cluster=2,
    ),
    WrongKernel("cluster_peer_gone", "cluster CTA exited", (_in(2, 32), _out(2, 32)), threads=32, ctas=2, cluster=2),
)
