"""Finds experiments and the other tables of the pages by listing their folders; imports none of them."""

import re
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
_ASKING = ("questions", "bars")
_QUESTION = re.compile(r'^QUESTION = "(.+)"$', re.MULTILINE)
_MAKING = ("tables", "cli")
_MAKER = re.compile(r"^def (table|pictures)\(past: Archive\)", re.MULTILINE)


def questions() -> dict[str, str]:
    """Each experiment's name and the question it asks, by name."""
    found = {name: asked for folder in _ASKING for name, asked in _matches(folder, _QUESTION).items()}
    return dict(sorted(found.items()))


def names() -> tuple[str, ...]:
    """The experiments' names."""
    return tuple(questions())


def module_of(name: str) -> str:
    """The dotted module of an experiment that there is."""
    folder = next(folder for folder in _ASKING if name in _matches(folder, _QUESTION))
    return f"experiments.{folder}.{name}"


def tables() -> dict[str, str]:
    """The modules whose tables or pictures belong to no experiment, by the name that a block of a page has."""
    return {name: f"experiments.{folder}.{name}" for folder in _MAKING for name in _matches(folder, _MAKER)}


@cache
def _matches(folder: str, pattern: re.Pattern[str]) -> dict[str, str]:
    """What the pattern's group finds in each module of a folder where it finds anything, by the module's name."""
    found = {
        path.stem: pattern.search(path.read_text(encoding="utf-8")) for path in sorted((_FOLDER / folder).glob("*.py"))
    }
    return {name: match[1] for name, match in found.items() if match}
