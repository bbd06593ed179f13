"""Finds the experiments by listing this folder for modules that ask a question; imports none of them."""

import re
from pathlib import Path

_FOLDER = Path(__file__).parent
_QUESTION = re.compile(r'^QUESTION = "(.+)"$', re.MULTILINE)


def questions() -> dict[str, str]:
    """Each experiment's name and the question it asks, by name."""
    found = {path.stem: _QUESTION.search(path.read_text()) for path in sorted(_FOLDER.glob("*.py"))}
    return {name: match[1] for name, match in found.items() if match}


def names() -> tuple[str, ...]:
    """The experiments' names."""
    return tuple(questions())
