"""The article's verdicts: made of figures, whatever the records hold."""

import pytest

from experiments.tables import article
from experiments.tables.article import EXACT, ROUGH, judged
from lab.record import Archive
from tests.experiments.examples import linear, timed


def rows(past: Archive) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in article.table(past).splitlines() if line.startswith("| ")]
    return {cells[0]: cells for cells in lines}


@pytest.mark.parametrize(
    ("found", "verdict"),
    [(100.0, "holds"), (104.9, "holds"), (95.3, "holds"), (106.0, "loose"), (41.0, "loose"), (39.0, "does not hold")],
)
def test_a_figure_holds_is_loose_or_does_not_hold(found: float, verdict: str) -> None:
    assert judged(found, 100.0) == verdict
    assert 1 < EXACT < ROUGH


def test_without_records_theory_alone_judges_and_what_needs_a_card_says_so() -> None:
    found = rows(Archive(()))
    assert found["The ridge climbs from chip to chip"][-1] == "does not hold: it falls from the H100 to the H200"
    assert found["Keys and values of 8,192 tokens, 32 layers of width 4,096"][2] == "4.29 GB"
    assert found["FLOPs a byte with 2,048 tokens"][-1].startswith("loose: the activations are as many bytes")
    assert all(cells[4] == "-" for says, cells in found.items() if says not in ("the article", "---"))
    half = "Half the weight bytes, nearly half the time: 8,192 x 8,192 in fp8, m = 1"
    assert found[half][-1] == "not measured"
    assert "Measured on" not in article.table(Archive(()))


def test_two_cards_of_identical_flops_are_set_side_by_side() -> None:
    layer = {**linear(1), "n": 13824, "k": 5120}
    times = [timed(us=us, machine=card, problem=layer, run=card) for card, us in (("h100", 43.0), ("h200", 30.0))]
    slower = timed(
        us=50.0, machine="h200", problem=layer, run="later", schedule={**(times[1].schedule or {}), "unroll": 1}
    )
    row = rows(Archive((*times, slower)))["Identical FLOPs: the H200's speed over the H100's in decode, 13,824 x 5,120"]
    assert row[4:] == ["1.433", "holds"]


def test_a_card_below_its_floor_would_be_told() -> None:
    for us, verdict in ((7100.0, "holds: no step that was measured is below its card's floor"), (5000.0, "holds")):
        step = timed(None, us, machine="h200", problem=article.THIRTEEN.as_dict(), metrics={"launches": "overlapping"})
        assert rows(Archive((step,)))["Its weights alone take a token, ms"][-1] == verdict
