"""Counts of a launch from hardware counters, read by Nsight Compute (ncu) around a child that runs the kernel once.

What an H100 was seen to count (experiments/records/counters.jsonl): ordinary loads and stores, tensor-core FLOPs and
bytes stored by TMA exactly as theory, ragged or not. TMA loads count for every destination of a multicast and for whole
boxes, also the rows that lie outside the array, and 32 bytes for each sector that a box row touches, so rows that start
inside a sector count more than complete_tx reports: on ragged problems the counter lies above theory.
"""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lab import catalog
from lab.gpu.launch import executor
from lab.gpu.worker import environment
from lab.kernel import Kernel, parse_schedule, schedule_fields
from lab.problems import QUESTIONS
from lab.verify import workspaces
from sim.counts import SECTOR, Counts
from sim.errors import EnvironmentFailure
from sim.launch import Role
from sim.machine import Machine, machine

DEADLINE_S = 180.0
_GRID = "launch__grid_size"

# Counts field -> the metrics whose sum it is, and the bytes or operations that one unit of them stands for. Names and
# meanings: Nsight Compute "Metrics decoder", and `ncu --query-metrics --chips gh100`.
FIELDS: Mapping[str, tuple[tuple[str, ...], int]] = {
    "mma_flops": (
        (
            "sm__ops_path_tensor_op_hgmma_src_bf16_dst_fp32_sparsity_off.sum",
            "sm__ops_path_tensor_op_hgmma_src_fp16_sparsity_off.sum",
            "sm__ops_path_tensor_op_hmma_src_bf16_dst_fp32_sparsity_off.sum",
            "sm__ops_path_tensor_op_hmma_src_fp16_dst_fp32_sparsity_off.sum",
        ),
        1,
    ),
    "global_load_sectors": (("l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",), 1),
    "global_store_sectors": (("l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",), 1),
    "tma_load_bytes": (("l1tex__m_xbar2l1tex_read_bytes_mem_global_op_tma_ld.sum",), 1),
    "l2_to_sm_bytes": (("l1tex__m_xbar2l1tex_read_bytes.sum",), 1),
    "sm_to_l2_bytes": (("l1tex__m_l1tex2xbar_write_bytes.sum",), 1),
    "hbm_read_bytes": (("dram__bytes_read.sum",), 1),
    "hbm_write_bytes": (("dram__bytes_write.sum",), 1),
    "l2_lookup_bytes": (("lts__t_sectors_srcunit_tex_op_read.sum",), SECTOR),
}
# Read beside them, for records: no field of Counts.
BESIDE = (
    _GRID,
    "lts__t_sectors_srcunit_tex_op_write.sum",
    "lts__t_sectors_op_red.sum",
    "lts__t_sectors_op_atom.sum",
    "lts__t_sectors_srcunit_ltcfabric.sum",
    "lts__d_sectors_fill_device.sum",
    "l1tex__m_l1tex2xbar_write_bytes_mem_global_op_tma_st.sum",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_red.sum",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_atom.sum",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "gpu__time_duration.sum",
)
WANTED = (*(name for parts, _ in FIELDS.values() for name in parts), *BESIDE)


@dataclass(frozen=True)
class Reading:
    """What ncu read of all launches of a kernel together: as Counts, and every metric by its own name."""

    counts: Counts
    metrics: dict[str, float]


class Job(msgspec.Struct):
    """What the profiled child runs."""

    kernel: str
    problem: dict[str, Any]
    schedule: str
    machine: str


def ncu() -> str:
    """The path of ncu; raises EnvironmentFailure, saying so, where it is absent."""
    path = shutil.which("ncu")
    if path is None:
        raise EnvironmentFailure("ncu is not on PATH, so there are no hardware counters (Nsight Compute brings it)")
    return path


def read(kernel: Kernel, problem: Any, schedule: Any, target: Machine, deadline_s: float = DEADLINE_S) -> Reading:
    """As `read_all` of one."""
    (reading,) = read_all([(kernel, problem, schedule)], target, deadline_s)
    return reading


def read_all(
    subjects: Sequence[tuple[Kernel, Any, Any]], target: Machine, deadline_s: float = DEADLINE_S
) -> list[Reading]:
    """Run each (kernel, problem, schedule) once under one ncu, caches flushed before each, clocks as they are.

    Raises EnvironmentFailure where ncu is absent or refused, past the deadline, and where the grids that ran are not
    the schedules'.
    """
    jobs: list[Job] = []
    expected: list[list[int]] = []
    entries: dict[str, None] = {}
    for kernel, problem, schedule in subjects:
        launches = kernel.launches(problem, schedule, target)
        words = ",".join(f"{name}={value}" for name, value in schedule_fields(schedule).items())
        jobs.append(Job(kernel.name, problem.as_dict(), words, target.name))
        expected.append([launch.ctas for launch in launches])
        entries |= {launch.entry: None for launch in launches}
    rows = _profile(jobs, f"regex:^({'|'.join(entries)})$", deadline_s)
    grids = [int(row[_GRID]) for row in rows if _GRID in row]
    if grids != [ctas for launches in expected for ctas in launches]:
        raise EnvironmentFailure(f"ncu saw grids of {grids} CTAs where the schedules have {expected}")
    ordered = iter(rows)
    return [
        _reading(problem, list(islice(ordered, len(launches))))
        for (_, problem, _), launches in zip(subjects, expected, strict=True)
    ]


def _reading(problem: Any, rows: Sequence[Mapping[str, float]]) -> Reading:
    metrics = {name: sum(row.get(name, 0.0) for row in rows) for row in rows for name in row}
    counts = counts_of(metrics)
    if problem.unit == "fp8":  # no metric counts what the tensor cores do with fp8
        counts = replace(counts, mma_flops=None)
    return Reading(counts, metrics)


def counts_of(metrics: Mapping[str, float]) -> Counts:
    """Metrics as Counts; a field none of whose metrics was read is None."""
    found = {}
    for name, (parts, unit) in FIELDS.items():
        read_parts = [metrics[part] for part in parts if part in metrics]
        if read_parts:
            found[name] = round(sum(read_parts)) * unit
    return Counts(**found)


def parse(text: str) -> list[dict[str, float]]:
    """The rows of `ncu --csv --page raw`: metric name to value, one row a launch.

    What is no number is left out, and so is what ncu adds of the device and the launch that nobody asked for.
    """
    lines = [row for row in csv.reader(text.splitlines()) if len(row) > 5]
    header = next((number for number, row in enumerate(lines) if "Kernel Name" in row), None)
    if header is None:
        return []
    names = lines[header]
    rows = []
    for values in lines[header + 2 :]:  # the line between names and values holds units
        row = {}
        for name, value in zip(names, values, strict=False):
            with suppress(ValueError):
                if name in WANTED:
                    row[name] = float(value.replace(",", ""))
        rows.append(row)
    return rows


def _profile(jobs: Sequence[Job], kernels: str, deadline_s: float) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        command = [ncu(), "--clock-control", "none", "--cache-control", "all", "--csv", "--page", "raw"]
        command += ["--print-units", "base", "--kernel-name", kernels, "--metrics", ",".join(_metrics())]
        command += [
            "--log-file",
            str(log),
            sys.executable,
            "-m",
            "lab.gpu.counters",
            msgspec.json.encode(jobs).decode(),
        ]
        output = _run(command, deadline_s)
        text = log.read_text(errors="replace") if log.exists() else ""
    rows = parse(text)
    if not rows:
        raise EnvironmentFailure(_explain(text + output))
    return rows


@cache
def _metrics() -> tuple[str, ...]:
    """The wanted metrics that this GPU has: ncu refuses the whole run for one it does not know."""
    offered = set(
        re.findall(r"^\s*([a-z0-9_]+__[a-z0-9_]+)", _run([ncu(), "--query-metrics"], DEADLINE_S), re.MULTILINE)
    )
    if not offered:
        return WANTED
    return tuple(name for name in WANTED if name.split(".")[0] in offered or name.startswith("launch__"))


def _run(command: list[str], deadline_s: float) -> str:
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env=environment(),
    ) as process:
        try:
            output, _ = process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            raise EnvironmentFailure(f"ncu was killed at its deadline of {deadline_s:g} s") from None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    return output


def _explain(text: str) -> str:
    if "ERR_NVGPUCTRPERM" in text:
        return "the driver refuses hardware counters to this user (ERR_NVGPUCTRPERM): an administrator must allow them"
    errors = [line.strip() for line in text.splitlines() if "ERROR" in line or "Error" in line]
    return f"ncu read nothing: {'; '.join(errors[-3:]) or text.strip()[-300:] or 'it printed nothing'}"


def _child(arguments: Iterable[str]) -> None:
    """What ncu profiles: each kernel once, on random data."""
    drawn: dict[str, Any] = {}
    for job in msgspec.json.decode(next(iter(arguments)), type=list[Job]):
        kernel, target = catalog.get(job.kernel), machine(job.machine)
        fields = {name: value for name, value in job.problem.items() if name != "kind"}
        problem: Any = QUESTIONS[job.problem["kind"]](**fields)
        launches = kernel.launches(problem, parse_schedule(kernel, job.schedule, problem, target), target)
        outputs = {a.name: np.zeros(a.shape, a.storage) for step in launches for a in step.arrays if a.role is Role.OUT}
        if repr(problem) not in drawn:
            drawn = {repr(problem): problem.draw(np.random.default_rng())}
        executor(target)(launches, {**drawn[repr(problem)], **workspaces(launches), **outputs})


if __name__ == "__main__":
    _child(sys.argv[1:])
