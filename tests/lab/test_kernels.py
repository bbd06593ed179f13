"""Every kernel of the catalog, by its contract alone: a new kernel is tested before anyone writes a test for it."""

import re
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import catalog
from lab.compile import compile_launch
from lab.kernel import Kernel, constants, parse_schedule, recorded_schedule, schedule_fields
from lab.verify import simulator, verify
from sim.counts import EXACT, disagreements
from sim.errors import InputError, ScheduleError
from sim.formats import FORMATS
from sim.launch import Array, Scalar, TensorMap
from sim.machine import H100
from tests.emulator.cases import hardest
from tests.strategies import each_kernel, examples, large_problems, problems, schedules, small, some


def test_what_families_share_is_no_kernel() -> None:
    shared = Path(catalog.__file__).parent / "kernels" / "common"
    assert list(shared.glob("*.cuh"))
    assert not list(shared.glob("*.cu"))
    assert "common" not in {kernel.family for kernel in catalog.kernels()}


@each_kernel
@examples(15)
@given(data=st.data())
def test_every_problem_of_a_models_size_has_a_schedule(kernel: Kernel, data: st.DataObject) -> None:
    problem = data.draw(large_problems(kernel))
    assert kernel.launches(problem, kernel.best_guess(problem, H100), H100)


@each_kernel
@examples(16)
@given(data=st.data())
def test_simulation_solves_the_problem_and_counts_what_theory_says(kernel: Kernel, data: st.DataObject) -> None:
    problem = data.draw(problems(kernel))
    schedule = data.draw(schedules(kernel, problem))
    found = verify(kernel, problem, schedule, H100, simulator(kernel, H100), seed=data.draw(st.integers(0, 99)))
    assert found.check.passed, found.check
    assert found.disagreements == {}
    assert None not in [getattr(found.theory, name) for name in EXACT], "theory states every exact field"
    assert None not in [getattr(found.counted, name) for name in EXACT], "the simulator counts every exact field"


@each_kernel
@examples(10)
@given(data=st.data())
def test_counting_alone_counts_the_same(kernel: Kernel, data: st.DataObject) -> None:
    problem = data.draw(problems(kernel))
    schedule = data.draw(schedules(kernel, problem))
    launches = kernel.launches(problem, schedule, H100)
    assert len({launch.entry for launch in launches}) == len(launches)
    counted = [kernel.module.simulate(launch, problem.indices(), H100) for launch in launches]
    total = counted[0]
    for one in counted[1:]:
        total = total + one
    assert disagreements(total, kernel.module.theory(problem, schedule, H100)) == {}


@each_kernel
def test_candidates_compile_without_spills_and_take_the_launch_arguments(kernel: Kernel, every: bool) -> None:
    problem = small(kernel)
    schedules = some(kernel.module.candidates(problem, H100), every, drawn=1)  # the emulator's tests compile two more
    for schedule in schedules:
        for launch in kernel.launches(problem, schedule, H100):
            used = compile_launch(launch, H100).resources[launch.entry]
            assert used.spill_bytes == 0
            assert used.registers * launch.threads <= H100.registers_per_sm
            assert used.static_shared_bytes + launch.shared_bytes <= H100.shared_bytes_per_block


@pytest.mark.deep
@each_kernel
@examples(1)
@given(data=st.data())
def test_the_best_guess_for_any_problem_compiles_without_spills(kernel: Kernel, data: st.DataObject) -> None:
    problem = data.draw(large_problems(kernel))
    for launch in kernel.launches(problem, kernel.best_guess(problem, H100), H100):
        assert compile_launch(launch, H100).resources[launch.entry].spill_bytes == 0


@each_kernel
def test_parameters_of_the_entry_are_those_of_the_launch(kernel: Kernel) -> None:
    case = hardest(kernel)  # which the emulator's tests compile too
    for launch in kernel.launches(case.problem, case.schedule, case.machine):
        ptx = compile_launch(launch, case.machine, "ptx").path.read_text()
        entry = re.search(rf"\.entry {launch.entry}\((.*?)\)", ptx, re.DOTALL)
        assert entry is not None
        declared = re.findall(r"\.param (?:\.align (\d+) )?\.(\w+) \S+?(?:\[(\d+)\])?[,\s]", entry.group(1) + "\n")
        sizes = [int(count) if count else int(kind[1:]) // 8 for _, kind, count in declared]
        assert sizes == [parameter_bytes(a) for a in launch.arguments]


def parameter_bytes(argument: Array | Scalar | TensorMap) -> int:
    match argument:
        case Array():
            return 8
        case TensorMap():
            return 128
        case Scalar(type="int64"):
            return 8
        case _:
            return 4


@each_kernel
def test_what_the_kernel_cannot_take_is_refused_in_one_sentence(kernel: Kernel) -> None:
    for name, divisor in kernel.solves.multiples(small(kernel)).items():
        problem = replace(small(kernel), **{name: divisor + 1})
        with pytest.raises(
            InputError, match=rf"^{kernel.name} needs {name} to be a multiple of {divisor} .*; {name} ="
        ):
            kernel.require(problem)
    kind = kernel.solves.problem
    other = next(name for name in FORMATS if name not in kernel.solves.formats and name != "int4_g32")
    with pytest.raises(InputError, match=f"takes {kind.FORMAT} in|are in fp32"):
        kernel.require(kind.tiny(other))


@each_kernel
def test_a_schedule_is_at_most_ten_plain_values_and_illegal_ones_raise(kernel: Kernel) -> None:
    problem = small(kernel)
    schedule = kernel.best_guess(problem, H100)
    assert is_dataclass(schedule)
    assert len(fields(schedule)) <= 10
    assert all(isinstance(value, int) for value in constants(schedule).values())
    for field in fields(schedule):
        for value in (-1, 10**6 + 1):
            with pytest.raises(ScheduleError):
                replace(schedule, **{field.name: value}).fits(problem, H100)


@each_kernel
def test_a_schedule_is_read_from_words(kernel: Kernel) -> None:
    problem = small(kernel)
    for schedule in kernel.module.candidates(problem, H100):
        text = ",".join(f"{f.name}={getattr(schedule, f.name)}" for f in fields(schedule))
        assert parse_schedule(kernel, text, problem, H100) == schedule
    with pytest.raises(InputError, match="has no schedule field 'nonsense'; its fields: "):
        parse_schedule(kernel, "nonsense=1", problem, H100)
    with pytest.raises(InputError, match="takes an integer; got 'many'"):
        parse_schedule(kernel, f"{fields(kernel.best_guess(problem, H100))[0].name}=many", problem, H100)


@each_kernel
def test_a_record_without_a_younger_field_is_read_with_its_default(kernel: Kernel) -> None:
    younger = {f.name: f.default for f in fields(kernel.module.Schedule) if f.default is not MISSING}
    for schedule in kernel.module.candidates(small(kernel), H100):
        values = schedule_fields(schedule)
        assert recorded_schedule(kernel, values) == schedule
        for name in values:
            others = {other: value for other, value in values.items() if other != name}
            if name not in younger:
                with pytest.raises(InputError, match=f"{kernel.name} has the schedule fields "):
                    recorded_schedule(kernel, others)
            elif values[name] == younger[name]:
                assert recorded_schedule(kernel, others) == schedule
