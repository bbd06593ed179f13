"""What the worker process runs of whole steps: checked, then timed. Only functions here load a GPU library."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np

from experiments.running.jobs import StepJob, problem_of
from experiments.running.on_device import in_time
from lab.problems import Model
from lab.problems.model import DECODE, PREFILL
from lab.record import Checked, Record

LONGEST = 8192  # tokens of context that weights are made for, at least
PEER_CLOSE = 2.0**-4  # of the norm of all logits: two bf16 evaluations of dozens of layers
COMPILED = "peer:torch_compile"


def steps(argument: Any) -> Iterator[Record]:
    """Records of each job's step: launches that overlap, plain ones, and PyTorch's step where weights are bf16."""
    from lab.gpu.bench import shared_fields, timed_record
    from lab.gpu.timing import Clock, measure
    from lab.inference import step_us

    for job in in_time(argument, StepJob):
        if isinstance(job, Record):
            yield job
            continue
        arena = Arena.of(problem_of(job.problem), job.peers)
        model, machine = arena.model, arena.machine
        new = model.context if model.phase == PREFILL else 1
        predicted = step_us(model, [(new, model.context)] * model.batch, machine)
        shared = {**shared_fields(model, machine, job.experiment), "check": arena.check}
        if not arena.check.passed:
            yield Record(**shared, metrics={**job.facts, "failure": "launches that overlap give another result"})
            continue
        with arena.stream:
            timings = measure(arena.contestants, Clock.COLD, job.rounds)
        for name, timing in timings.items():
            facts = {**job.facts, "tokens_per_s": model.batch * new / timing.us * 1e6}
            if name == COMPILED:
                facts["relative_error"] = arena.peer_error
                fields = {**shared, "kernel": name, "check": Checked(arena.peer_error <= PEER_CLOSE, None)}
            else:
                facts |= {"launches": name, "kernels": arena.step.launches}
                fields = {**shared, "overlapping": name == "overlapping", "predicted_us": predicted}
            yield timed_record(fields, facts, timing, model, machine)


@dataclass
class Arena:
    """One step of a model in all its ways, on the same weights and cache."""

    model: Model
    machine: Any
    stream: Any
    step: Any  # of launches that overlap
    contestants: list[Any]
    check: Checked
    peer_error: float = 0.0

    @classmethod
    def of(cls, model: Model, peers: bool) -> "Arena":
        import cupy

        from lab.gpu import device
        from lab.gpu.timing import Contestant
        from lab.inference.chip import gpu
        from lab.inference.layers import Forward
        from lab.inference.step import Step, StepCache
        from lab.inference.step_input import PAGE, Chunk, Layout

        chip = gpu(device.machine())
        weights = _weights(replace(model, batch=1, context=1, phase=DECODE), max(model.context, LONGEST))
        rows, pages = model.batch, -(-model.context // PAGE)
        new = model.context if model.phase == PREFILL else 1
        forward = Forward(weights.config, weights.matrices, 1 + rows * pages, model.kv)
        stream = cupy.cuda.Stream(non_blocking=True)
        rng = np.random.default_rng(0)
        ids = rng.integers(0, model.vocab, (rows, new))
        chunks = [
            Chunk(ids[row], model.context - new, range(1 + row * pages, 1 + (row + 1) * pages)) for row in range(rows)
        ]
        with stream:
            kept = StepCache(forward, chip)
            for name, array in kept.arrays.items():
                if name.endswith(".cache") and array.dtype == np.uint16:
                    values = cupy.random.standard_normal(array.size, dtype=np.float32)
                    array[...] = chip.encode_bf16(values).reshape(array.shape)
            contestants, logits, made = [], [], []
            for dependent in (True, False):
                step = Step(weights, kept, forward, Layout(rows, rows * new, pages), chip, dependent)
                step.input.fill(chunks)
                step.run()
                made.append(step)
                logits.append(chip.read(step.arrays["logits"]))
                contestants.append(Contestant("overlapping" if dependent else "plain", (step.replay,)))
            finite = bool(((logits[0] & 0x7F80) != 0x7F80).all())
            check = Checked(finite and np.array_equal(*logits), None)
            arena = cls(model, chip.machine, stream, made[0], contestants, check)
            if peers and model.weights == "bf16" and model.phase == DECODE:
                arena._add_peer(weights.arrays, kept.arrays, ids[:, 0], logits[0])
        return arena

    def _add_peer(self, arrays: dict[str, Any], caches: dict[str, Any], ids: Any, logits: Any) -> None:
        """PyTorch's step on the same weights and a copy of the same cache, and how far its logits are from ours."""
        import torch

        from experiments.peers.arrays import as_torch, on_this_stream
        from experiments.peers.model import TorchDecode, captured, contiguous
        from lab.gpu.timing import Contestant
        from sim.formats import decode

        self.stream.synchronize()
        with torch.no_grad():
            weights = {name: as_torch(a, "fp32" if name == "turns" else "bf16") for name, a in arrays.items()}
            kept = [
                contiguous(as_torch(caches[f"layers.{i}.cache"], "bf16"), self.model.batch)
                for i in range(self.model.layers)
            ]
            kept = [(k[:, :, : self.model.context], v[:, :, : self.model.context]) for k, v in kept]
            peer = TorchDecode(self.model, weights, kept)
            tokens = torch.from_numpy(ids).cuda()
            expected = decode(logits, "bf16").astype(float)
            found = peer.logits(tokens).float().cpu().numpy()
            self.peer_error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
            compiled = cache(lambda part: torch.compile(part, mode="max-autotune-no-cudagraphs", dynamic=False))
            graph = captured(lambda: peer.logits(tokens, compiled).argmax(-1))
            torch.cuda.synchronize()
            self.contestants.append(Contestant(COMPILED, (on_this_stream(graph.replay),)))


@lru_cache(maxsize=1)
def _weights(model: Model, context: int) -> Any:
    """Random weights, kept for the steps that follow."""
    import cupy

    from lab.gpu import device
    from lab.inference.chip import gpu
    from lab.inference.step_weights import random

    found = random(model, context, gpu(device.machine()))
    cupy.cuda.get_current_stream().synchronize()  # steps run on another stream
    return found
