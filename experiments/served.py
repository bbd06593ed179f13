"""Serving loops in tables: what was predicted of each beside what was measured of it, as two records of one case."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.rows import Row
from experiments.running.jobs import ServeJob
from lab.problems import Model
from lab.record import Archive, Record
from lab.serving.workload import Workload

USUAL = {"max_rows": 256, "max_tokens": 2048, "pages": 6000, "max_length": 8960}  # of a policy
DECODES, LONG = 32, 8192  # sequences that decode, and tokens of the prompts that come between them


@dataclass
class Case:
    """One loop: the newest records that predict and that measure it."""

    predicted: Record | None = None
    measured: Record | None = None

    @property
    def either(self) -> Record:
        """The measured record where there is one."""
        found = self.measured or self.predicted
        assert found
        return found


def job(experiment: str, case: str, model: Model, requests: Sequence[tuple[float, int, int]], **more: Any) -> ServeJob:
    """A loop under the name that its records have."""
    facts, policy = {"case": case, **more.pop("facts", {})}, USUAL | more.pop("policy", {})
    return ServeJob(
        problem=model.as_dict(), requests=tuple(requests), policy=policy, experiment=experiment, facts=facts, **more
    )


def lengths(workload: Workload) -> list[tuple[float, int, int]]:
    """(arrival, prompt, answer) of each request of a workload."""
    return [(r.arrival_us, len(r.prompt), r.max_tokens) for r in workload.requests(2)]


def between_decodes(answer: int = 700, prompts: int = 3) -> list[tuple[float, int, int]]:
    """Requests that decode all the while, and a long prompt a second from 1.5 s on."""
    return [(0.0, 512, answer)] * DECODES + [(1.5e6 + 1e6 * i, LONG, 4) for i in range(prompts)]


def cases(records: Sequence[Record]) -> dict[str, Case]:
    """Each loop's newest records, by its name."""
    found: dict[str, Case] = {}
    for record in records:
        if "case" not in record.metrics:  # a search's
            continue
        case = found.setdefault(str(record.metrics.get("case")), Case())
        if record.on == "gpu":
            if case.measured is None or "failure" not in record.metrics:  # a run that was skipped hides none
                case.measured = record
        else:
            case.predicted = record
    return found


def served_rows(records: Sequence[Record], shown: Sequence[str]) -> Iterator[Row]:
    """These figures of each loop."""
    for name, case in cases(records).items():
        for metric in shown:
            told, found = (figure(one, metric) for one in (case.predicted, case.measured))
            if told is not None or found is not None:
                source = case.measured.source if case.measured else ""
                share = metric.endswith(("_fraction", "_waste", "_share"))
                yield Row(name, words(metric), None, told, found, source=source, percent=share)


def newest(past: Archive, experiment: str, key: str = "") -> list[Record]:
    """The records of an experiment's newest run on a GPU, else of its newest at all; of each value of a fact `key`."""
    every = past.where(experiment=experiment).records
    runs: dict[Any, str] = {}
    for on in ("sim", "gpu"):
        runs |= {r.metrics.get(key): r.run for r in every if any(o.run == r.run and o.on == on for o in every)}
    return [r for r in every if runs.get(r.metrics.get(key)) == r.run]


def figure(record: Record | None, metric: str) -> float | None:
    """A figure of a record; None where it has none."""
    value = record.metrics.get(metric) if record else None
    return float(value) if isinstance(value, int | float) else None


def words(metric: str) -> str:
    """What a figure is called in tables."""
    named: Mapping[str, str] = {
        "output_throughput": "output tokens a second",
        "idle_fraction": "time without a step",
        "kv_waste": "room in block tables that is empty",
        "mean_rows": "sequences of a step",
    }
    for suffix, unit in (("_ms", "ms"), ("_us", "us")):
        if metric.endswith(suffix):
            return f"{metric.removesuffix(suffix).replace('_', ' ')}, {unit}"
    return named.get(metric, metric.replace("_", " "))
