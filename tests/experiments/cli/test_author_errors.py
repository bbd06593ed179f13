"""What a kernel's author did wrong is said with file and line, exit code 2; every other kernel goes on."""

import pytest

from experiments.cli import run_command
from lab import catalog
from lab.choice import is_solvable
from lab.problems import Linear
from sim.machine import H100
from tests.experiments.cli.conftest import CODE, DESCRIPTION, FAMILY, Draft

CHECK = ["check", "draft", "m=1", "n=8", "k=64"]


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that fails for its author's sake says on standard error; all of it is about the draft."""
    assert run_command(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("lab: ")
    assert "bug in the lab" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("description", "says"),
    [
        (
            '"""Draft."""\n\nimport no_such_module\n',
            "draft.py:3: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ('"""Draft."""\nx = (\n', "draft.py:2: SyntaxError: '(' was never closed"),
        ('"""Draft."""\nfrom lab.problems import Linnear\n', "draft.py:2: ImportError: cannot import name 'Linnear'"),
        ('"""Draft."""\nfrom lab.kernel import Solves\n\nSOLVES = Solves()\n', "draft.py:4: TypeError: "),
        ('"""Draft."""\n', "draft.py does not define SOLVES, Schedule, candidates, launch, theory, simulate"),
        (DESCRIPTION.partition("\n")[2], "draft.py has no docstring"),
        (DESCRIPTION + "SOLVES = 1\n", "draft.py needs SOLVES to be a Solves"),
        (DESCRIPTION + "Schedule = dict\n", "draft.py needs Schedule to be a dataclass"),
    ],
    ids=lambda text: text.rpartition(": ")[2][:30] if "draft.py" in text else "",
)
def test_a_kernel_that_does_not_import(
    description: str, says: str, draft: Draft, capsys: pytest.CaptureFixture[str]
) -> None:
    draft(description, CODE)
    expected = f"lab: {catalog._FOLDER}/{FAMILY}/{says}"
    assert expected in said(CHECK, capsys)
    assert run_command(["list"]) == 2
    listed = capsys.readouterr()
    (complaint, *_) = [line for line in listed.err.splitlines() if not line.endswith(" ...")]  # what a slow one awaits
    assert complaint.startswith(expected)
    assert all(kernel.name in listed.out for kernel in catalog.kernels())
    assert [kernel.name for kernel in catalog.kernels()] == [name for name in catalog.names() if name != "draft"]
    assert is_solvable(Linear(1, 8, 64), H100)


def test_half_a_kernel_and_a_second_one_of_the_same_name(draft: Draft, capsys: pytest.CaptureFixture[str]) -> None:
    folder = draft(DESCRIPTION, CODE)
    (folder / "draft.py").unlink()
    assert "draft.cu has no description beside it: draft.py is missing" in said(["list"], capsys)
    draft(DESCRIPTION, CODE)
    again = folder.parent / "sketches"
    again.mkdir()
    (again / "draft.cu").write_text(CODE)
    catalog._sources.cache_clear()
    assert f"two kernels are called draft: {folder}/draft.cu and {again}/draft.cu" in said(["list"], capsys)


@pytest.mark.parametrize("hook", ["candidates", "launch", "theory", "simulate"])
def test_python_of_a_kernel_that_raises(hook: str, draft: Draft, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = f"{DESCRIPTION}def {hook}(*question):\n    return 1 // 0\n"
    folder = draft(wrong, CODE)
    place = f"{folder}/draft.py:{wrong.count(chr(10))}"
    assert said(CHECK, capsys) == f"lab: {place}: ZeroDivisionError: integer division or modulo by zero\n"
    assert run_command(["list", "--json"]) == 0


def test_a_full_disk_is_no_authors_mistake(draft: Draft) -> None:
    draft(f"{DESCRIPTION}def theory(*question):\n    raise OSError(28, 'No space left on device')\n", CODE)
    assert run_command(CHECK) != 2


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (CODE.replace("{}", "{\n  nonsense();\n}"), 'draft.cu(3): error: identifier "nonsense" is undefined'),
        (CODE.replace("{}", '{\n  asm("nonsense;");\n}'), "draft.cu(3)\n"),
        (CODE.replace("{}", "{\n  int unused;\n}"), 'draft.cu(3): warning #177-D: variable "unused"'),
        (CODE.replace('extern "C"', ""), 'draft.cu has no extern "C" entry draft; its entries: _Z5draft'),
        ("// \xe9 is no UTF-8\n#include <ptx/nonsense.cuh>\n", "cannot open source file"),
    ],
    ids=["undefined", "ptxas", "warning", "mangled", "include"],
)
def test_device_code_that_does_not_compile(
    code: str, says: str, draft: Draft, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = draft(DESCRIPTION, CODE)
    (folder / "draft.cu").write_bytes(code.encode("latin-1"))
    shown = said(CHECK, capsys)
    assert shown.startswith(f"lab: {folder}/draft.cu ")
    assert says in shown
    if "nonsense();" in code:
        assert "\n    nonsense();\n    ^\n" in shown, "the compiler's own lines are kept"
    assert run_command(["list", "--json"]) == 0


def test_no_kernel_of_the_catalog_is_broken() -> None:
    assert catalog.broken() == {}
