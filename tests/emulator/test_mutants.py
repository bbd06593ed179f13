"""Mutants: each family is made of the right instructions, every mutant is PTX, and each changes what it says."""

from collections import Counter

import pytest

from sim.emulator.mutants import Mutant, mutants
from sim.emulator.ptx import parse
from sim.machine import H100
from tests.wrong.kernels import WRONG, WrongKernel

BOX = 128  # bytes of the ring's box


def never(_ptx: str) -> bool:
    return False


def kernel(name: str) -> WrongKernel:
    return next(k for k in WRONG if k.name == name)


def mutants_of(name: str) -> tuple[str, list[Mutant]]:
    ptx = kernel(name).compile(fixed=True, machine=H100).read_text()
    return ptx, list(mutants(ptx, name, BOX, never))


def changed_lines(before: str, after: str) -> list[tuple[str, str]]:
    pairs = zip(before.split("\n"), after.split("\n"), strict=True)
    return [(a.strip(), b.strip()) for a, b in pairs if a != b]


@pytest.mark.parametrize("name", [k.name for k in WRONG])
def test_every_mutant_is_ptx_that_differs(name: str) -> None:
    ptx, found = mutants_of(name)
    for mutant in found:
        assert name in parse(mutant.ptx).kernels
        assert changed_lines(ptx, mutant.ptx)
        assert "trap;" in mutant.probe
        assert name in parse(mutant.probe).kernels
    assert len({m.ptx for m in found}) == len(found)


@pytest.mark.parametrize("shares", [1, 2, 5])
def test_shares_are_all_mutants_once(shares: int) -> None:
    ptx, found = mutants_of("ring_slot_reused")
    dealt = [list(mutants(ptx, "ring_slot_reused", BOX, never, (i, shares))) for i in range(shares)]
    assert Counter(m for own in dealt for m in own) == Counter(found)
    assert all(len(own) < len(found) for own in dealt if shares > 1)


def test_the_ring_has_mutants_of_every_family_but_commits() -> None:
    _, found = mutants_of("ring_slot_reused")
    families = Counter(m.family for m in found)
    assert families.keys() == {"wait", "arrive", "fence", "barrier", "phase", "bytes", "stage", "bound"}
    assert families["phase"] == 2  # the producer's wait and the consumer's
    assert families["bytes"] == 2  # one box more, one less


def test_the_consumers_arrival_moves_before_its_read_with_its_address() -> None:
    ptx, found = mutants_of("ring_slot_reused")
    early = next(
        m for m in found if m.change.startswith("move mbarrier.arrive.shared") and "before ld.shared" in m.change
    )
    hoisted = next(after for _, after in changed_lines(ptx, early.ptx) if "mbarrier.arrive" in after)
    assert hoisted.index("mbarrier.arrive") < hoisted.index("ld.shared")
    barrier = hoisted.split("_, [")[1].split("]")[0]
    assert f"add.s32 {barrier}" in hoisted.replace("\t", "")


def test_a_wait_moves_as_a_whole_loop() -> None:
    ptx, found = mutants_of("ring_slot_reused")
    late = next(m for m in found if m.change.startswith("move mbarrier.try_wait") and "behind ld.shared" in m.change)
    (_, dropped), (_, moved) = changed_lines(ptx, late.ptx)
    assert dropped == "setp.eq.u32 p, 0, 0;"
    assert moved.index("ld.shared") < moved.index("mbarrier.try_wait") < moved.index("@!%moved bra")


@pytest.mark.parametrize(
    ("name", "comparison"),
    [
        ("global_load_out_of_bounds", "setp.ge"),  # skip where i >= n: a larger n admits more
        ("ring_slot_reused", "setp.lt"),  # go on while step < steps
    ],
)
def test_a_bound_moves_to_where_it_admits_more(name: str, comparison: str) -> None:
    ptx, found = mutants_of(name)
    widened = [m for m in found if m.family == "bound" and f"`{comparison}" in m.change and ", 1`" not in m.change]
    assert widened
    for mutant in widened:
        ((_, after),) = changed_lines(ptx, mutant.ptx)
        assert "add.s32 %mutant, %mutant, 1;" in after


def test_a_loop_is_not_skipped_for_fewer_steps_than_one() -> None:
    ptx, found = mutants_of("ring_slot_reused")
    empty = [m for m in found if m.family == "bound" and ", 1`" in m.change]  # skip where steps < 1
    assert empty
    for mutant in empty:
        ((_, after),) = changed_lines(ptx, mutant.ptx)
        assert "add.s32 %mutant, %mutant, -1;" in after


def test_a_bound_takes_the_least_step_that_changes_an_outcome() -> None:
    name = "global_load_out_of_bounds"
    ptx = kernel(name).compile(fixed=True, machine=H100).read_text()
    widened = [m for m in mutants(ptx, name, BOX, lambda probe: ", 8;" in probe) if m.family == "bound"]
    assert widened
    assert all(m.change.endswith("by 8") for m in widened)


def test_an_outer_bound_that_an_inner_one_repeats_is_left_alone() -> None:
    text = """
.version 8.0
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 k_0, .param .u32 k_1)
{
.reg .pred %p<3>;
.reg .b32 %r<4>;
.reg .b64 %rd<2>;
ld.param.u64 %rd1, [k_0];
ld.param.u32 %r1, [k_1];
mov.u32 %r2, %tid.x;
setp.ge.s32 %p1, %r2, %r1;
@%p1 bra $end;
setp.lt.s32 %p2, %r2, %r1;
@%p2 st.global.u32 [%rd1], %r2;
$end:
ret;
}
"""
    (only,) = mutants(text, "k", BOX, never)
    assert "setp.lt.s32 %p2" in only.change


def test_a_bound_counts_in_each_copy_that_tells_or_once() -> None:
    guards = "\n".join(f"setp.lt.s32 %p{i}, %r2, %r{2 + i};\n@%p{i} st.global.u32 [%rd1], %r2;" for i in (1, 2))
    text = f"""
.version 8.0
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 k_0, .param .u32 k_1, .param .u32 k_2)
{{
.reg .pred %p<3>;
.reg .b32 %r<5>;
.reg .b64 %rd<2>;
ld.param.u64 %rd1, [k_0];
ld.param.u32 %r3, [k_1];
ld.param.u32 %r4, [k_2];
mov.u32 %r2, %tid.x;
{guards}
ret;
}}
"""
    for telling in ({"%p1"}, {"%p2"}, {"%p1", "%p2"}):

        def reaches(probe: str, telling: set[str] = telling) -> bool:
            return any(f"xor.pred %other, %other, {predicate};" in probe for predicate in telling)

        found = {m.change.split()[5].rstrip(",") for m in mutants(text, "k", BOX, reaches)}
        assert found == telling
    assert len(list(mutants(text, "k", BOX, never))) == 1


def joined(ptx: str) -> str:
    """The same module with what stands on lines of its own on one line, up to the next label, directive or brace."""
    out = [""]
    for line in ptx.split("\n"):
        instruction = line.strip().endswith(";") and not line.strip().startswith((".", "//"))
        if instruction and out[-1].strip().endswith(";") and not out[-1].strip().startswith("."):
            out[-1] += f" {line.strip()}"
        else:
            out.append(line)
    return "\n".join(out)


@pytest.mark.parametrize("name", [k.name for k in WRONG])
def test_how_instructions_are_spread_over_lines_changes_no_mutant(name: str) -> None:
    ptx, found = mutants_of(name)
    packed = joined(ptx)
    same = list(mutants(packed, name, BOX, never))
    assert packed.count("\n") < ptx.count("\n")
    assert {" ".join(m.ptx.split()) for m in found} <= {" ".join(m.ptx.split()) for m in same}
    assert {(m.family, m.change, m.location) for m in found} == {(m.family, m.change, m.location) for m in same}


@pytest.mark.parametrize("between", [" ", "\n", " /* ; */ ", "// ;\n"])
def test_each_instruction_has_its_mutants_wherever_it_stands(between: str) -> None:
    head = ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k()\n"
    barriers = [between.join(["bar.sync", "0;"])] * 2
    text = f"{head}{{\n{between.join(barriers)}\nret;\n}}\n"
    dropped = [
        " ".join(parse(m.ptx).text.split()) for m in mutants(text, "k", BOX, never) if m.change == "drop bar.sync"
    ]
    assert len(dropped) == 2
    assert all(one.count("bar.sync") == 1 for one in dropped)
    assert all(m.ptx.count("\n") == text.count("\n") for m in mutants(text, "k", BOX, never))
