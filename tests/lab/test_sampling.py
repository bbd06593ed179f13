"""Sampling: the generator's published numbers, the distribution that filters leave, races that agree with a sort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lab import catalog
from lab.problems.sampling import Sampling, Settings, philox, variates
from lab.verify import compare, simulator, verify
from sim.errors import InputError
from sim.formats import decode, encode
from sim.machine import H100

KERNEL = catalog.get("sample")
FILTERS = st.builds(
    Settings,
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 50]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    seed=st.integers(0, 2**64 - 1),
    draw=st.integers(0, 2**32 - 1),
)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # "known answer tests" of the authors' library, Random123, kat_vectors
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0xA4093822 | 0x299F31D0 << 32,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_random_words_are_the_published_ones(counter: tuple, key: int, words: tuple) -> None:
    assert tuple(int(w[0]) for w in philox(tuple(np.array([c], np.uint64) for c in counter), key)) == words


def run(logits: NDArray, rows: list[Settings]) -> tuple[NDArray, NDArray]:
    problem = Sampling(len(rows), logits.shape[-1])
    arrays = {
        "logits": np.broadcast_to(logits, (len(rows), logits.shape[-1])).copy(),
        "settings": np.stack([row.words() for row in rows]),
        "token": np.zeros(len(rows), np.int32),
        "log_probability": np.zeros(len(rows), np.float32),
    }
    simulator(KERNEL, H100)(KERNEL.launches(problem, KERNEL.best_guess(problem, H100), H100), arrays)
    return arrays["token"], arrays["log_probability"]


def kept(logits: NDArray, s: Settings) -> NDArray[np.float64]:
    """Probabilities after a sort and three cuts, and zero elsewhere; equally likely tokens stay or go together."""
    weight = np.exp((logits - logits.max()) / s.temperature)
    probability = weight / weight.sum()
    likelier = probability[None, :] > probability[:, None]
    able = (likelier.sum(1) < s.top_k) | (s.top_k == 0)
    able &= ((likelier * probability).sum(1) < s.top_p) | (s.top_p == 1)
    able &= weight >= np.float32(s.min_p)
    return np.where(able | (weight == 1), probability, 0.0)


@settings(max_examples=60, deadline=None)
@given(s=FILTERS, seed=st.integers(0, 999))
def test_races_find_what_a_sort_a_cut_and_one_race_find(s: Settings, seed: int) -> None:
    bits = encode(3 * np.random.default_rng(seed).standard_normal(40), "bf16")
    logits = decode(bits, "bf16").astype(float)
    expected = int(np.argmax(kept(logits, s) / variates(s, 40)[0]))
    token, log_probability = run(bits, [s])
    assert token[0] == expected
    assert log_probability[0] == pytest.approx(logits[expected] - np.log(np.exp(logits).sum()), abs=1e-5)


@pytest.mark.parametrize(
    "s", [Settings(1.0), Settings(2.0, top_k=4), Settings(1.0, top_p=0.8), Settings(1.0, min_p=0.2)], ids=str
)
def test_tokens_come_as_often_as_they_are_likely(s: Settings) -> None:
    draws = 4000
    bits = encode(np.linspace(1.5, -1.5, 8), "bf16")
    token, _ = run(bits, [s._replace(seed=7, draw=i) for i in range(draws)])
    expected = kept(decode(bits, "bf16").astype(float), s)
    expected = draws * expected / expected.sum()
    found = np.bincount(token, minlength=8)
    there = expected > 0
    assert not found[~there].any()
    chi_squared = ((found - expected)[there] ** 2 / expected[there]).sum()
    assert chi_squared < 24.3  # exceeded with probability 0.001 by 7 degrees of freedom, and by fewer less often


def test_a_row_depends_on_its_own_logits_and_settings_alone() -> None:
    problem = Sampling(9, 304)
    arrays = problem.draw(np.random.default_rng(0))
    rows = [Settings.of_words(words) for words in arrays["settings"]]
    alone = [int(run(arrays["logits"][i], [row])[0][0]) for i, row in enumerate(rows)]
    found = verify(KERNEL, problem, KERNEL.best_guess(problem, H100), H100, simulator(KERNEL, H100))
    assert found.passed, found
    assert alone == [int(t) for t in problem.reference(arrays)["token"].value]


def test_temperature_zero_takes_the_first_of_the_likeliest() -> None:
    logits = np.zeros(16)
    logits[[5, 9]] = 2
    token, log_probability = run(encode(logits, "bf16"), [Settings()])
    assert token[0] == 5
    assert log_probability[0] == pytest.approx(2 - np.log(2 * np.exp(2) + 14), abs=1e-6)


def test_logits_of_minus_infinity_are_never_drawn() -> None:
    problem = Sampling(20, 264, settings="plain")
    arrays = problem.draw(np.random.default_rng(1), "inf")
    outputs = {name: np.zeros(o.shape, o.storage) for name, o in problem.outputs.items()}
    simulator(KERNEL, H100)(KERNEL.launches(problem, KERNEL.best_guess(problem, H100), H100), {**arrays, **outputs})
    assert np.isfinite(decode(arrays["logits"], "bf16")[np.arange(20), outputs["token"]]).all()
    assert compare(problem, problem.reference(arrays), outputs).passed


@pytest.mark.parametrize("name", ["token", "log_probability"])
def test_a_wrong_token_or_log_probability_is_found(name: str) -> None:
    problem = Sampling(3, 64)

    def wrong(launches, arrays):
        counts = simulator(KERNEL, H100)(launches, arrays)
        arrays[name][1] += 1
        return counts

    assert verify(KERNEL, problem, KERNEL.best_guess(problem, H100), H100, wrong).check.mismatched == name


@given(s=FILTERS)
def test_settings_go_through_their_words(s: Settings) -> None:
    found = Settings.of_words(s.words())
    assert found.words().tolist() == s.words().tolist()
    assert (found.top_k, found.seed, found.draw) == (s.top_k, s.seed, s.draw)


@pytest.mark.parametrize(
    "s", [Settings(-1.0), Settings(101.0), Settings(1.0, top_p=0.0), Settings(1.0, min_p=1.5), Settings(1.0, top_k=-1)]
)
def test_settings_that_mean_nothing_are_refused(s: Settings) -> None:
    with pytest.raises(InputError, match=r"temperature must be from 0 to 100|top_k, seed and draw must be"):
        s.words()
