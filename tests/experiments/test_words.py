"""name=value words: round trip, and one sentence for each mistake."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.words import parse, spell
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


def test_problems_are_parsed_by_their_fields() -> None:
    assert parse(Linear, ["m=1", "n=2", "k=3", "weights=fp8"]) == Linear(1, 2, 3, "fp8")
    words = ["batch=1", "q_heads=4", "kv_heads=2", "head_dim=8", "q_len=1", "kv_len=9", "causal=false", "kv=fp8"]
    assert parse(Attention, words) == Attention(1, 4, 2, 8, 1, 9, causal=False, kv="fp8")
