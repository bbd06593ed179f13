"""How well a chip speaks: its logits at every position of a fixed text beside those of the float32 reference."""

from collections.abc import Iterator
from math import exp, log, sqrt
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from experiments.running.jobs import Work
from lab.record import Checked, Record, Value
from sim.formats import FORMATS

ROUNDINGS = 11  # to bf16 in a layer: norm, qkv, turn, attention, output, sum; norm, gate and up, gated, down, sum
STORED = "as stored"
ENDS = 4  # in the embedding, the last norm, the head's weights and the logits

TEXT = """\
A mill on a river has two seasons. In spring the water is high and everything depends on the stones. Sacks arrive by
the cart load, all at once, and the miller pours one after another into the hopper without ever closing the gate.
The wheel turns as fast as it can, the stones are never idle, and if the village wants more flour before summer, it
must buy harder stones or build a second mill. Nobody in spring complains about the road, because a single cart
keeps the stones busy for hours.

In autumn it is the other way round. The river is as strong as before, but now the people come on foot, each with
one small bag, and each of them wants to watch the flour fall before walking home for the next. The miller opens the
gate, the stones turn for a moment, and then they wait. What takes time is the road. A better stone would change
nothing at all. What helps is a shorter road, a lighter bag, or neighbours who agree to walk together and share one
cart, so that the same journey brings ten bags instead of one.

A traveller who saw the mill only in spring wrote that its owner should spend his money on stones. A traveller who
saw it only in autumn wrote that he should spend it on the road. Both had counted carefully, and both were right
about what they had seen. The miller, who had lived there through both seasons, kept two ledgers. In the first he
wrote how much grain the stones could grind in an hour. In the second he wrote how many bags the road could carry.
Whenever somebody offered him an improvement, he looked first at the calendar and then at the ledger that belonged
to it, and he asked a single question: which of the two is waiting for the other?

His daughter went further. She noticed that the two seasons overlap for some weeks, when carts and walkers come on
the same day. If the carts went first, the walkers stood in the yard until evening. If the walkers went first, the
stones stood still at noon. So she cut each cart load into small parts and let a few walkers through between one
part and the next. The carts took a little longer, the walkers waited far less, and for the first time in the
history of the mill neither the stones nor the road were ever quite at rest.
"""


class Scoring(Work, frozen=True, kw_only=True):
    """A model's file or folder, by default SmolLM2-135M-Instruct; how many tokens of the text are read at most.

    `weights` is what its matrices are rounded to, as stored by default.
    """

    model: str = ""
    tokens: int = 512
    weights: str = ""


def scores(argument: Any) -> Iterator[Record]:
    """One record of a model on a chip beside the reference, as plain data from a `Scoring`."""
    from lab.gpu import device
    from lab.inference import load
    from lab.record import provenance
    from sim.machine import machine as machine_named

    asked = msgspec.convert(argument, Scoring)
    gpu = asked.on == "gpu"
    chip = device.machine() if gpu else machine_named(asked.machine)
    reference = load(asked.model or None, on="reference")
    tokens = reference.tokenizer.encode(TEXT)[: asked.tokens]
    model = load(asked.model or None, "gpu" if gpu else "sim", chip, weights=asked.weights)
    metrics = compared(reference.runner.logits(tokens), model.runner.logits(tokens), tokens, model.runner.config.layers)
    card = device.card() if gpu else None
    yield Record(
        **provenance(),
        on="gpu" if gpu else "sim",
        machine=chip.name,
        card=card.name if card else None,
        driver=card.driver if card else None,
        experiment=asked.experiment,
        check=None if asked.weights else Checked(metrics["error"] <= 1 and not metrics["disputed"], metrics["error"]),
        metrics={"model": model.name, "weights": asked.weights or STORED, "tokens": len(tokens), **metrics},
    )


def compared(expected: NDArray, found: NDArray, tokens: list[int], layers: int) -> dict[str, Any]:
    """What two chips' logits [tokens, vocab] of a text mean; those `expected` are the reference's.

    A chip rounds to bf16, u = 2^-8, on a path of 11 roundings a layer and 4 more. Where these are
    independent and no layer amplifies what it takes, its logits are off in the root mean square by less than
    u sqrt(roundings) of their own size: `error` is their share of that. The
    largest of `vocab` such differences is sqrt(2 ln vocab) times as large. Where the reference's likeliest token leads
    by more than twice that, the chip must say it too: `disputed` counts where it does not.
    """
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    size = FORMATS["bf16"].unit_roundoff * sqrt(ROUNDINGS * layers + ENDS) * sqrt((expected**2).mean())
    off = sqrt(((found - expected) ** 2).mean())
    two = np.partition(expected, -2, axis=-1)[:, -2:]
    other = expected.argmax(-1) != found.argmax(-1)
    margin = two[:, 1] - two[:, 0]
    disputed = other & (margin > 2 * sqrt(2 * log(expected.shape[1])) * size)
    ours, theirs = log_probabilities(found), log_probabilities(expected)
    divergence = (np.exp(theirs) * (theirs - ours)).sum(-1)
    said = np.arange(len(tokens) - 1), np.array(tokens[1:])
    results: dict[str, Value] = {
        "perplexity": exp(-ours[said].mean()),
        "reference_perplexity": exp(-theirs[said].mean()),
        "divergence_nats": float(divergence.mean()),
        "worst_divergence_nats": float(divergence.max()),
        "same_likeliest": 1 - float(other.mean()),
        "error": off / size,
        "disputed": int(disputed.sum()),
    }
    return results


def log_probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of every token at every position."""
    shifted: NDArray[np.float64] = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
