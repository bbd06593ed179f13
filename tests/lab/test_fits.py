"""Coefficients of models: each kernel finds its own, clocks differ by an empty launch, bad lines are refused."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from lab import catalog
from lab.cards import CLOCKS, Calibration, Measured, calibration, fits
from lab.kernel import Bills, Kernel, Predicts
from lab.problems import Linear
from lab.serving import power
from sim.errors import InputError
from sim.machine import A100, H100, H200, MACHINES, Machine
from tests.strategies import fitted, problems, variants

KERNELS = [kernel for kernel in catalog.kernels() if kernel.solves.problem is Linear]
LINES = fits.load(fits.TABLE)


def models(kind: type[fits.Coefficients] = fits.Coefficients) -> set[type[fits.Coefficients]]:
    below = {one for kind_below in kind.__subclasses__() for one in models(kind_below)}
    return below or {kind}


def test_every_number_of_the_file_is_some_models_and_every_model_has_its_numbers() -> None:
    assert KERNELS, "which make their models"
    assert power.Coefficients in models()
    fields = {frozenset(kind.__struct_fields__) for kind in models() if kind.__module__.startswith("lab.")}
    assert {frozenset(fit.coefficients) for fit in LINES} == fields


@pytest.mark.parametrize("machine", MACHINES.values(), ids=lambda m: m.name)
@given(data=st.data())
def test_a_clock_without_a_line_differs_by_an_empty_launch_at_least(machine: Machine, data: st.DataObject) -> None:
    """Whatever a kernel's model adds, a launch that starts later ends as much later."""
    chained = {line.model for line in LINES if line.clock == "chain" and line.machine == machine.name}
    without = [k for k in KERNELS if k.solves.runs_on(machine.arch) and k.name not in chained]
    kernel = data.draw(st.sampled_from(without))
    problem = data.draw(problems(kernel).filter(lambda p: p.unit in machine.peaks))
    schedule = kernel.best_guess(problem, machine)
    graph, chain = (kernel.predicted_us(problem, schedule, machine, clock) for clock in ("graph", "chain"))
    shorter = fits.launch_us(machine, "graph") - fits.launch_us(machine, "chain")
    assert (graph > chain) == (shorter > 0)
    assert graph - chain >= shorter - 1e-9 * graph


def test_a_calibrated_launch_goes_before_the_machines_and_a_chains_is_a_graphs_until_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = calibration(H100)
    assert fits.launch_us(H100, "cold") == card.launch("cold") != card.launch("graph") == fits.launch_us(H100, "chain")
    assert [fits.launch_us(A100, clock) for clock in CLOCKS] == [A100.launch_us] * 3
    chained = structs.replace(card, launch_us={**card.launch_us, "chain": Measured(0.5, next(iter(card.runs)))})
    monkeypatch.setattr(fits, "calibration", lambda _: chained)
    assert fits.launch_us(H100, "chain") == 0.5


def test_the_rate_of_a_read_is_the_cards_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    plateau = (calibration(H100).reads["graph"] or ())[-1].bytes_per_s
    assert fits.read_rate(H100) == pytest.approx(plateau)
    monkeypatch.setattr(fits, "calibration", lambda machine: Calibration(machine=machine.name))
    for machine in MACHINES.values():
        assert fits.read_rate(machine) / machine.hbm_bandwidth == pytest.approx(plateau / H100.hbm_bandwidth, rel=1e-5)
        assert fits.copy_rate(machine) == fits.read_rate(machine)


class Toy(fits.Coefficients, frozen=True):
    start_us: float
    share: float


def line(**changed: Any) -> dict[str, Any]:
    known = {"arch": "sm_90a", "model": "toy", "clock": "graph", "source": "a test"}
    return known | {"coefficients": {"start_us": 1.0, "share": 0.5}} | changed


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def write(*lines: dict[str, Any]) -> Path:
        path = tmp_path / "fits.jsonl"
        path.write_bytes(b"\n".join(map(msgspec.json.encode, lines)))
        monkeypatch.setattr(fits, "TABLE", path)
        fits._fit.cache_clear()
        return path

    yield write
    fits._fit.cache_clear()


def test_a_machines_own_line_goes_first_then_its_architectures_then_the_first_ones(table: Any) -> None:
    numbers = {"start_us": 2.0, "share": 0.25}
    table(line(), line(machine="h200", coefficients=numbers), line(arch="sm_80", coefficients=numbers | {"share": 1.0}))
    shares = [fits.coefficients(Toy, "toy", machine, "graph").share for machine in MACHINES.values()]
    assert dict(zip(MACHINES, shares, strict=True)) == {"a100": 1.0, "h100": 0.5, "h200": 0.25, "b200": 0.5}


def test_a_cold_line_goes_before_a_chains_where_a_graph_has_none(table: Any) -> None:
    """Launches of a graph begin when the one ahead has ended, as cold ones do."""
    table(line(clock="chain"), line(clock="cold", coefficients={"start_us": 9.0, "share": 0.5}))
    assert fits.nearest("toy", H100, "graph").clock == "cold"
    assert fits.nearest("toy", H100, "chain").clock == "chain"


def test_a_clocks_own_line_goes_before_another_clocks_with_another_launch(table: Any) -> None:
    table(line(), line(clock="cold", coefficients={"start_us": 9.0, "share": 0.5}))
    assert fits.coefficients(Toy, "toy", H100, "cold").start_us == 9.0
    table(line())
    longer = fits.launch_us(H100, "cold") - fits.launch_us(H100, "graph")
    assert fits.coefficients(Toy, "toy", H100, "cold") == Toy(1.0 + longer, 0.5)
    assert fits.coefficients(Toy, "toy", H200, "graph") == Toy(1.0, 0.5)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line(coefficients={"start_us": 1.0})], "sm_90a toy graph: .*missing required field `share`"),
        ([line(coefficients={"start_us": 1.0, "share": 1.0, "other": 1.0})], "unknown field `other`"),
        ([line(coefficients={"share": "much"})], "line 1 is no fit: Expected `float`"),
        ([line(), line(clock="warm")], "line 2: unknown clock 'warm'; clocks: cold, graph, chain"),
        ([line(), line()], "line 2 repeats sm_90a toy graph"),
        ([line(colour="red")], "line 1 is no fit"),
        ([line(model="another")], "no line of the model toy for sm_90a"),
    ],
)
def test_a_line_that_is_none_is_refused(table: Any, lines: list[dict[str, Any]], message: str) -> None:
    table(*lines)
    with pytest.raises(InputError, match=message):
        fits.coefficients(Toy, "toy", H100, "graph")


@pytest.mark.parametrize("kernel", catalog.kernels(), ids=lambda k: k.name)
def test_bills_are_positive_and_their_largest_binds(kernel: Kernel) -> None:
    problem = fitted(kernel, variants(kernel)[0])
    for clock in CLOCKS:
        found = kernel.bills(problem, kernel.best_guess(problem, H100), H100, clock)
        assert isinstance(found, Bills)
        assert min(found.parts.values()) >= 0
        assert found.parts[found.binds] == max(found.parts.values()) <= found.us * (1 + 1e-9)
        assert found.us <= sum(found.parts.values()) * (1 + 1e-9)


def test_a_kernel_without_a_model_pays_an_empty_launch_and_its_largest_bill() -> None:
    kernel = catalog.get("gemm_naive")
    assert not isinstance(kernel.module, Predicts)
    problem = Linear(1, 4096, 4096)
    found = kernel.bills(problem, kernel.best_guess(problem, H100), H100, "cold")
    assert found.us == fits.launch_us(H100, "cold") + found.parts[found.binds]


def test_a_trial_goes_before_the_table_while_it_lasts_and_hears_what_is_asked_for(table: Any) -> None:
    table(line())
    own = fits.Fit("sm_90a", "toy", "graph", "a trial", {"start_us": 2.0, "share": 0.25}, machine="h200")
    with fits.trial(own) as asked:
        assert fits.coefficients(Toy, "toy", H200, "graph") == Toy(2.0, 0.25)
        assert fits.coefficients(Toy, "toy", H100, "graph") == Toy(1.0, 0.5), "the line is another machine's"
        with fits.trial(structs.replace(own, machine="h100")):
            shares = [fits.coefficients(Toy, "toy", machine, "graph").share for machine in (H100, H200)]
        assert shares == [0.25, 0.25]
    assert asked == {"toy"}
    assert fits.coefficients(Toy, "toy", H200, "graph") == Toy(1.0, 0.5)


def test_new_lines_take_the_place_of_all_of_their_model(table: Any) -> None:
    path = table(line(), line(clock="cold"), line(model="other"), line(arch="sm_80"))
    assert fits.coefficients(Toy, "toy", H200, "graph").share == 0.5
    judged = fits.Fit(
        "sm_90a", "toy", "graph", "new", {"start_us": 1.0, "share": 0.75}, "h200", {"a": fits.Error(3, 2, 0.1, 0.2)}
    )
    fits.put([judged])
    assert [(fit.arch, fit.model, fit.clock, fit.machine) for fit in fits.load(path)] == [
        ("sm_80", "toy", "graph", None), ("sm_90a", "other", "graph", None), ("sm_90a", "toy", "graph", "h200"),
    ]  # fmt: skip
    assert fits.coefficients(Toy, "toy", H200, "graph").share == 0.75
    assert fits.error("a", H200, "chain") == (judged.errors["a"], judged)
    assert fits.error("b", H200, "graph") is None


def test_one_machines_new_lines_leave_the_others(table: Any) -> None:
    own = line(machine="h200")
    path = table(line(), own, line(machine="h100"))
    fits.put([fits.Fit(**{**own, "source": "new"})], "h200")
    assert [(fit.machine, fit.source == "new") for fit in fits.load(path)] == [
        (None, False),
        ("h100", False),
        ("h200", True),
    ]
