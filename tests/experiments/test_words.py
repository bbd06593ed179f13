"""name=value words: round trip, and one sentence for each mistake."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.words import parse, spell, spread
from lab.problems import Attention, Linear
from sim.errors import InputError


@dataclass(frozen=True)
class Some:
    """A field of each type."""

    n: int
    flag: bool = False
    name: str = "x"


@given(n=st.integers(), flag=st.booleans(), name=st.text(st.characters(exclude_characters="= ", categories=["L"])))
def test_spelling_is_parsed_back(n: int, flag: bool, name: str) -> None:
    some = Some(n, flag, name)
    assert parse(Some, spell(vars(some)).split(" ")) == some


def test_defaults_fill_what_no_word_gives() -> None:
    assert parse(Some, ["flag=yes"], {"n": 3, "name": "y"}) == Some(3, True, "y")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["n"], "'n' is not a name=value word; names: n, flag, name"),
        (["m=1"], "unknown name 'm'; names: n, flag, name"),
        (["n=1", "n=2"], "n is given twice"),
        (["n=1.5"], "n takes an integer; got '1.5'"),
        (["n="], "n takes an integer; got ''"),
        (["n=1", "flag=maybe"], "flag takes true or false; got 'maybe'"),
        ([], "n= must be given; names: n, flag, name"),
        (["n=" + "9" * 5000], "n takes an integer; got '9"),
    ],
)
def test_mistakes_are_one_short_sentence(words: list[str], says: str) -> None:
    with pytest.raises(InputError) as raised:
        parse(Some, words)
    assert says in str(raised.value)
    assert len(str(raised.value)) < 150


@pytest.mark.parametrize(("text", "value"), [("4k", 4096), ("4K", 4096), ("2m", 2**21), ("-1k", -1024)])
def test_integers_may_be_in_binary_thousands(text: str, value: int) -> None:
    assert parse(Some, [f"n={text}"]) == Some(value)


@given(first=st.integers(1, 1000), more=st.integers(0, 10**6))
def test_a_span_doubles_as_long_as_it_is_within(first: int, more: int) -> None:
    words = spread(Some, [f"n={first}..{first + more}", "name=a,b"], most=100)
    values = [parse(Some, one).n for one in words[::2]]
    assert values[0] == first
    assert all(b == 2 * a for a, b in pairwise(values))
    assert values[-1] <= first + more < 2 * values[-1]
    assert [parse(Some, one).name for one in words] == ["a", "b"] * len(values)


def test_lists_hold_spans_and_lengths_keep_their_commas() -> None:
    assert spread(Some, ["n=3,1k..4k"], most=9) == [["n=3"], ["n=1024"], ["n=2048"], ["n=4096"]]
    assert spread(Attention, ["q_lens=1,2", "kv_lens=3,4"], most=1) == [["q_lens=1,2", "kv_lens=3,4"]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["n=0..8"], "n spans from at least 1 upwards; got '0..8'"),
        (["n=8..1"], "n spans from at least 1 upwards; got '8..1'"),
        (["n=1..x"], "n takes an integer; got 'x'"),
        (["n=1..1m", "name=a,b,c,d,e"], "these are 105 problems; one command takes 99"),
    ],
)
def test_bad_spans_are_one_short_sentence(words: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        spread(Some, words, most=99)


def test_problems_are_parsed_by_their_fields() -> None:
    assert parse(Linear, ["m=1", "n=2", "k=3", "weights=fp8"]) == Linear(1, 2, 3, "fp8")
    words = ["batch=1", "q_heads=4", "kv_heads=2", "head_dim=8", "q_len=1", "kv_len=9", "causal=false", "kv=fp8"]
    assert parse(Attention, words) == Attention(1, 4, 2, 8, 1, 9, causal=False, kv="fp8")
