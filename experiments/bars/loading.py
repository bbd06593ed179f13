"""Loading a model onto a chip: at most one copy of its mapped files and a fifth, and hardly more memory than theirs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.markdown import three_columns
from experiments.rows import Row, Verdict
from experiments.running.backends import Backend
from experiments.running.loading import Loading, loads
from lab.problems import model_named
from lab.record import Archive, Record
from sim.errors import InputError

QUESTION = "How long does loading a model take beside one copy of its file, and how much of the host's memory?"
TIMES, MEMORY = 1.2, 1.1  # of one pageable copy of the mapped files, and of the files' bytes


@dataclass(frozen=True)
class Options:
    """A preset, whose random bf16 weights are written to a temporary folder; each way is taken `times` times."""

    model: str = "smollm2-135m"
    times: int = 3
    seconds: int = 300

    def __post_init__(self) -> None:
        model_named(self.model)
        if min(self.times, self.seconds) < 1:
            raise InputError(f"times and seconds are at least 1; got {self.times}, {self.seconds}")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """One copy of the files, then the model, in turn."""
    work = Loading(model=options.model, times=options.times, experiment="loading")
    yield from backend.worked(loads, work, options.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001 (all is of one run)
    """Times and sizes; theory is the bar."""
    for record in records:
        m = {name: float(value or 0) for name, value in record.metrics.items() if name != "model"}
        case = f"{record.metrics['model']}, {m['file_bytes'] / 1e9:.2f} GB in bf16"
        for quantity, bar, here in (
            ("loading, s", TIMES * m["copy_s"], m["load_s"]),
            ("host memory, GB", MEMORY * m["file_bytes"] / 1e9, m["host_bytes"] / 1e9),
            ("chip's memory, GB", m["file_bytes"] / 1e9, m["weights_bytes"] / 1e9),
        ):
            on_card = record.on == "gpu"
            yield Row(case, quantity, bar, None if on_card else here, here if on_card else None, record.source)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """Against the bars; times of the simulated chip, which is the host's own memory, decide nothing."""
    said, passed = [], True
    for record in records:
        m = {name: float(value or 0) for name, value in record.metrics.items() if name != "model"}
        times, memory = m["load_s"] / m["copy_s"], m["host_bytes"] / m["file_bytes"]
        passed &= memory <= MEMORY and (record.on == "sim" or times <= TIMES)
        said.append(
            f"{record.metrics['model']} loads in {times:.2f} times one copy of its files (bar {TIMES}) and takes "
            f"{memory:.2f} times their bytes of the host's memory (bar {MEMORY})"
        )
    on_card = any(record.on == "gpu" for record in records)
    return Verdict(passed if on_card or not passed else None, "; ".join(said) + ".")


def table(past: Archive) -> str:
    """The newest run on a card."""
    found = past.newest_run(experiment="loading", on="gpu")
    if not found:
        return "No records yet: `lab run loading --on gpu` makes them."
    return three_columns(list(rows(found, past)), verdict(found, past).sentence)
