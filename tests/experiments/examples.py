"""Small runs of experiments, and records as a GPU would make them."""

from functools import lru_cache

import msgspec

from experiments.running.jobs import problem_of
from lab import catalog
from lab.kernel import schedule_fields
from lab.record import Archive, Checked, Record, provenance
from sim.machine import H100

SMALL = {
    "two_machines": {"d": 256, "m": 64},
    "batching": {"d": 256, "most": 8},
    "quantization": {"widest": 256},
    "fp8_error": {"n": 128, "most": 1024},
    "gemm_ladder": {"m": 256, "n": 256, "k": 256},
    "gemm_bars": {"part": "ragged"},
    "choice_regret": {"count": 2},
    "gemv_ladder": {"only": "1024x1024"},
    "disaggregation": {"requests": 3, "only": "azure-conv, 16"},
    "wrong_machine": {"n": 256, "k": 256, "m": 64},
    "decode_chain": {"d": 256},
    "decode_bars": {"shape": 0, "most": 2},
    "attention_bars": {"part": "skewed"},
    "step_bars": {"part": "formats"},
    "flash_attention": {"q_heads": 4, "kv_heads": 2, "shortest": 64, "longest": 256},
    "kv_growth": {"longest": 4096},
    "paged_kv": {"batch": 4, "context": 512},
    "kv_shrink": {"batch": 2, "context": 512},
    "attention_wrong_machine": {"prompt": 64, "batch": 2, "context": 512},
    "step_batching": {"most": 2},
    "step_machines": {"model": "smollm2-135m", "context": 256},
    "continuous_batching": {"model": "smollm2-135m", "requests": 6, "rows": 2},
    "serving_loop": {"model": "smollm2-135m", "requests": 4, "rates": "50"},
    "serving_bars": {"part": "host"},
    "first_and_later": {"model": "smollm2-135m", "longest": 512},
}
NOTHING = Archive(())


def measured(like: Record, us: float, clock: str = "graph") -> Record:
    """A GPU's record of the same kernel and problem."""
    changes = {"on": "gpu", "card": "a card", "us": us, "clock": clock, "samples_us": [us], "time": "2099"}
    return msgspec.structs.replace(like, **changes)


def timed(kernel: str | None = "gemv_vectorized", us: float = 12.0, **changes: object) -> Record:
    """A GPU's record of a kernel with its best guess of a schedule, or of a peer."""
    base = Record(
        **provenance(),
        on="gpu",
        machine="h100",
        card="a | card",
        kernel=kernel,
        problem=linear(1),
        clock="graph",
        us=us,
        predicted_us=10.0,
        check=Checked(True, 0.5),
    )
    found = msgspec.structs.replace(base, **{"run": "one", **changes})
    if kernel and found.schedule is None and not kernel.startswith("peer:"):
        return msgspec.structs.replace(found, schedule=_best_guess(kernel, msgspec.json.encode(found.problem)))
    return found


@lru_cache
def _best_guess(kernel: str, problem: bytes) -> dict[str, object]:
    return schedule_fields(catalog.get(kernel).best_guess(problem_of(msgspec.json.decode(problem)), H100))


def linear(m: int, **fields: object) -> dict[str, object]:
    return {"kind": "linear", "m": m, "n": 4096, "k": 4096, "weights": "bf16", **fields}
