"""Every kernel for linear layers against cuBLAS on this GPU: `python -m experiments.device_bench --out DIR`.

Checks and times the kernels of one family at the shapes that matter to it, on both clocks, interleaved with the peers;
writes each row as a record as soon as it is there and prints a table last. A worker process runs each family under a
deadline, so a kernel that hangs costs only its own family's remaining rows.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import chain, islice, product
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec

from lab import catalog, record
from lab.gpu import worker
from lab.gpu.device import require_device
from lab.kernel import Kernel
from lab.problems import Linear
from lab.record import Record
from sim.errors import LabError, ScheduleError
from sim.machine import MACHINES, Machine
from sim.roofline import roofline

SHAPES = {
    "gemv": [
        (1, 4096, 4096),
        (1, 16384, 16384),
        (1, 8192, 8192),
        (1, 14336, 4096),
        (1, 4096, 14336),
        (1, 576, 1536),
        (1, 49152, 576),
    ],
    "gemm": [(4096, 4096, 4096), (2048, 4096, 4096), (8192, 8192, 8192)],
}
SLOW = ("naive",)  # kernels of these names are the bottom of a ladder: one schedule, small shapes only
SLOW_FLOPS = 2**33


def family(job: dict[str, Any]) -> Iterator[Any]:
    """The rows of one family, as the worker yields them: records as plain values."""
    from experiments.peers import linear_peers  # needs PyTorch
    from lab.gpu.bench import Bench, Entry
    from lab.gpu.device import machine
    from lab.gpu.timing import Pace

    target, end = machine(), time.monotonic() + job["seconds"]
    kernels = [k for k in catalog.kernels() if k.family == job["family"] and k.solves.runs_on(target.arch)]
    for m, n, k in job["shapes"]:
        problem = Linear(m, n, k)
        if time.monotonic() > end:
            print(f"out of time before {problem}", flush=True)
            return
        solving = [kernel for kernel in kernels if not kernel.solves.refusal(problem) and _worth(kernel, problem)]
        entries = [Entry(kernel, s) for kernel in solving for s in schedules(kernel, problem, target, job["schedules"])]
        began = time.monotonic()
        arena = Bench(problem, target, experiment="device_bench")
        rows = arena.race(entries, linear_peers(problem), rounds=job["rounds"], paces=(Pace(job["pace"]),))
        print(f"{problem}: {len(rows)} rows in {time.monotonic() - began:.1f} s", flush=True)
        yield from (msgspec.to_builtins(row) for row in rows)


def schedules(kernel: Kernel, problem: Linear, target: Machine, limit: int) -> list[Any]:
    """The kernel's candidates, then every other combination of their values, up to `limit` legal schedules."""
    candidates = list(kernel.module.candidates(problem, target))
    names = list(asdict(candidates[0]))
    values = [sorted({getattr(c, name) for c in candidates}) for name in names]
    found: dict[Any, None] = {}

    def combinations() -> Iterator[Any]:
        for combination in product(*values):
            with suppress(ScheduleError):
                yield kernel.module.Schedule(**dict(zip(names, combination, strict=True)))

    for schedule in chain(candidates, combinations()):
        with suppress(ScheduleError):
            schedule.fits(problem, target)
            found[schedule] = None
    return list(islice(found, 1 if _slow(kernel) else limit))


def _slow(kernel: Kernel) -> bool:
    return any(word in kernel.name for word in SLOW)


def _worth(kernel: Kernel, problem: Linear) -> bool:
    return not _slow(kernel) or problem.flops <= SLOW_FLOPS


def table(rows: list[Record]) -> str:
    """One line a problem, clock and contestant: each kernel's best schedule, and each peer."""
    lines = [
        f"{'problem':>18} {'clock':6}{'kernel':18}{'us':>9} {'rate':>12} {'x peer':>7} {'floor':>6} {'err':>5} schedule"
    ]
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for row in rows:
        if row.problem and row.us:
            p = row.problem
            groups.setdefault((p["m"], p["n"], p["k"], row.clock), []).append(row)
    for (m, n, k, clock), group in groups.items():
        best: dict[str, Record] = {}
        for row in sorted(group, key=lambda r: r.us or 0.0):
            best.setdefault(row.kernel or "", row)
        peers = [r.us for r in best.values() if (r.kernel or "").startswith("peer:") and r.us]
        problem = Linear(m, n, k)
        for row in best.values():
            us = row.us or float("inf")
            flops, moved = problem.flops / us / 1e6, problem.bytes["total"] / us / 1e6
            rate = f"{flops:.0f} TFLOP/s" if m > 64 else f"{moved:.3f} TB/s"
            ratio = f"{min(peers) / us:.3f}" if peers else "-"
            floor = row_floor_us(row, problem)
            error = f"{row.check.error:.2f}" if row.check and row.check.error is not None else "-"
            words = ",".join(f"{a}={b}" for a, b in (row.schedule or {}).items())
            flag = " IMPOSSIBLE" if row.metrics.get("impossible") else ""
            lines.append(
                f"{f'{m}x{n}x{k}':>18} {clock or '-':6}{row.kernel or '-':18}{us:9.2f} {rate:>12} {ratio:>7} "
                f"{floor / us:6.0%} {error:>5} {words}{flag}"
            )
    failures = [r for r in rows if r.metrics.get("failure")]
    lines += [f"FAILED {r.kernel} {r.schedule} {r.problem}: {r.metrics['failure']}" for r in failures]
    clocks = [r.clocks["sm"] for r in rows if r.clocks and isfinite(r.clocks.get("sm", float("nan")))]
    if clocks:
        throttles = {reason for r in rows for reason in r.throttle or ()}
        lines.append(
            f"SM clock {min(clocks):.0f} to {max(clocks):.0f} MHz; throttled by {', '.join(throttles) or 'nothing'}"
        )
    return "\n".join(lines)


def row_floor_us(row: Record, problem: Linear) -> float:
    """The floor at data-sheet rates of the machine the row was measured on."""
    chip = MACHINES.get(row.machine)
    if chip is None:
        return float("nan")
    bills = roofline(problem.flops, problem.bytes["total"], problem.activations, chip)
    return max(bills.compute_us, bills.memory_us)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("device-bench"), help="folder of the records")
    parser.add_argument("--families", default=",".join(SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--seconds", type=float, default=150, help="time box of one family")
    parser.add_argument("--schedules", type=int, default=16, help="schedules of each kernel")
    parser.add_argument("--rounds", type=int, default=20, help="samples of each contestant")
    parser.add_argument("--pace", choices=("sustained", "burst"), default="sustained", help="whether the chip rests")
    parser.add_argument("--shapes", default="", help="m,n,k m,n,k ... instead of the family's own")
    chosen = parser.parse_args()
    rows: list[Record] = []
    try:
        require_device()
        for name in chosen.families.split(","):
            shapes = [tuple(map(int, s.split(","))) for s in chosen.shapes.split()] or SHAPES.get(name, [])
            job = {"family": name, "shapes": shapes, "seconds": chosen.seconds}
            job |= {"schedules": chosen.schedules, "rounds": chosen.rounds, "pace": chosen.pace}
            try:
                for values in worker.stream(family, job, chosen.seconds * 1.5 + 30):
                    row = msgspec.convert(values, Record)
                    record.append(row, chosen.out / f"{name}.jsonl")
                    rows.append(row)
            except (LabError, RuntimeError) as error:
                print(f"{name}: {error}", file=sys.stderr)
        print(table(rows))
    except LabError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 1 if not rows or any(r.check and not r.check.passed for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
