"""Tables in Markdown: a line a quantity by theory, simulation and measurement, or a line a case."""

from dataclasses import replace

from experiments.markdown import three_columns
from experiments.rows import Row

ROWS = [
    Row(case, quantity, None, 1000.0 * i + j, None)
    for i, case in enumerate(("first", "second"), 1)
    for j, quantity in enumerate(("tokens", "steps", "ms"))
]


def lines(rows: list[Row]) -> list[str]:
    return three_columns(rows, "A sentence.").split("\n\n")[0].splitlines()


def test_quantities_told_of_many_cases_are_columns() -> None:
    measured = [replace(ROWS[0], measured=1.5, source="a card"), *ROWS[1:]]
    assert lines(measured) == [
        "| simulated / measured | tokens | steps | ms |",
        "| --- | --- | --- | --- |",
        "| first | 1,000 / 1.5 | 1,001 | 1,002 |",
        "| second | 2,000 | 2,001 | 2,002 |",
    ]
    assert lines(ROWS)[0] == "|  | tokens | steps | ms |"
    assert lines(ROWS[:-1])[-1] == "| second | 2,000 | 2,001 | - |"
    assert three_columns(measured, "A sentence.").endswith("A sentence.\n\nMeasured on a card.")


def test_a_theory_few_quantities_or_one_case_are_a_line_each() -> None:
    for rows in ([replace(ROWS[0], theory=1.0), *ROWS[1:]], ROWS[:3], [r for r in ROWS if r.quantity != "ms"]):
        assert lines(rows)[0] == "|  |  | theory | simulated | measured |"
        assert len(lines(rows)) == 2 + len(rows)


def test_cases_that_share_no_quantity_are_a_line_each() -> None:
    apart = [replace(row, case=f"{row.case} {row.quantity}") for row in ROWS for _ in "ab"]
    assert lines([replace(r, case=f"{r.case}{i}", quantity=f"{r.quantity}{i}") for i, r in enumerate(apart)])[
        0
    ].startswith("|  |  | theory")
