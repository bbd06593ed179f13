"""What it costs in quality to round, activations and weights: perplexity and divergence beside float32."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.markdown import three_columns
from experiments.rows import Row, Verdict
from experiments.running.backends import Backend
from experiments.running.scoring import STORED, Scoring, scores
from lab.inference.step_weights import ROUNDED
from lab.record import Archive, Record
from sim.errors import InputError

QUESTION = "Does a model on these kernels speak as well as in float32?"
ALLOWED = 0.005  # of the reference's perplexity, either way, for weights as stored
EVERY = "all"


@dataclass(frozen=True)
class Options:
    """A GGUF file or folder, SmolLM2-135M-Instruct by default, on the first tokens of a fixed text.

    `weights` is a format that matrices are rounded to, or all of them after another; by default they are as stored.
    """

    model: str = ""
    tokens: int = 512
    weights: str = ""
    seconds: int = 300

    def __post_init__(self) -> None:
        if self.weights not in ("", EVERY, *ROUNDED):
            raise InputError(f"weights are {EVERY} or {', '.join(ROUNDED)}; got {self.weights!r}")
        if not 2 <= self.tokens <= 2048 or self.seconds < 1:
            raise InputError(f"tokens are 2 to 2,048 and seconds at least 1; got {self.tokens} and {self.seconds}")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """The text once through the reference and once through the chip."""
    formats = ("", *ROUNDED) if options.weights == EVERY else (options.weights,)
    for form in formats:
        work = Scoring(model=options.model, tokens=options.tokens, weights=form, experiment="quality")
        yield from backend.worked(scores, work, options.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001 (all is of one run)
    """The reference's figure, the simulated chip's, the card's."""
    for record in records:
        m = record.metrics
        case = f"{m['model']}, weights {m.get('weights', STORED)}"
        for quantity, theory, name, percent in (
            ("perplexity", m["reference_perplexity"], "perplexity", False),
            ("divergence from float32, nats", 0.0, "divergence_nats", False),
            ("likeliest token the same", 1.0, "same_likeliest", True),
        ):
            here = float(m[name] or 0)
            values, source = ((None, here), record.source) if record.on == "gpu" else ((here, None), "")
            yield Row(case, quantity, float(theory or 0), *values, source, percent=percent)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """Whether each chip's perplexity is within half a percent of the reference's, and its tokens beyond dispute."""
    said, passed = [], True
    for record in records:
        m = record.metrics
        off = float(m["perplexity"] or 0) / float(m["reference_perplexity"] or 1) - 1
        where = record.source if record.on == "gpu" else "the simulated chip"
        if m.get("weights", STORED) != STORED:
            said.append(f"weights in {m['weights']} change perplexity by {off:+.2%}")
            continue
        passed &= abs(off) <= ALLOWED and not m["disputed"]
        said.append(
            f"on {where} perplexity is {off:+.2%} of float32's, and the likeliest token is another at "
            f"{m['disputed']} positions where float32 is sure of it"
        )
    sentence = "; ".join(said)
    return Verdict(passed, f"{sentence[:1].upper()}{sentence[1:]}.")


def table(past: Archive) -> str:
    """The newest run on each chip."""
    found = [r for on in ("sim", "gpu") for r in past.newest_run(experiment="quality", on=on)]
    if not found:
        return "No records yet: `lab run quality --record` makes them."
    return three_columns(list(rows(found, past)), verdict(found, past).sentence)
