"""The cache of compiled code: named after the content of a file and of all that it imports."""

from pathlib import Path

import pytest

from sim import cached_jit as jit

WHOLE = """
from sim import atoms, tiles as t
from sim.tiles import (
    near,  # a reason, given
    far as away,
)
"""
LEAVES = ("sim/atoms.py", "sim/tiles/near.py", "sim/tiles/far.py", "sim/tiles/deep.py", "sim/tiles/deeper.py")
FILES = {
    "sim/tiles/whole.py": WHOLE,
    "sim/tiles/__init__.py": "from sim.tiles.deep import one\nfrom sim.tiles.deeper import two\n",
    **dict.fromkeys(LEAVES, ""),
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(jit, "ROOT", tmp_path)
    for name, text in {**FILES, "sim/tiles/other.py": ""}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def content(root: Path) -> str:
    jit._own.cache_clear()
    jit.content.cache_clear()
    return jit.content(root / "sim/tiles/whole.py")


@pytest.mark.parametrize("name", FILES)
def test_an_edit_in_whatever_a_file_imports_is_seen(root: Path, name: str) -> None:
    before = content(root)
    (root / name).write_text(FILES[name] + "EDITED = 1\n")
    assert content(root) != before


def test_an_edit_elsewhere_compiles_nothing_anew(root: Path) -> None:
    before = content(root)
    (root / "sim/tiles/other.py").write_text("EDITED = 1\n")
    assert content(root) == before
