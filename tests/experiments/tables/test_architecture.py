"""The architecture page: every layer says what it is, imports run down, and every path that it names is there."""

import re

from experiments.tables.architecture import imports, layers
from lab.record import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_every_module_of_the_house_says_what_it_is() -> None:
    found = {module for layer in layers() for module in layer}
    beside = {f"lab.{path.stem}" for path in (ROOT / "lab").glob("[a-z]*.py")}
    assert beside - {"lab.errors"} <= found  # errors are everyone's
    for module in found | {module for layer in layers("experiments") for module in layer}:
        assert re.search(rf"\| `{re.escape(module)}` \| \S", PAGE), module


def test_the_picture_of_the_house_shows_its_imports_and_none_runs_up() -> None:
    depth = {module: depth for depth, layer in enumerate(layers()) for module in layer}
    found = imports()
    assert ("lab.kernels", "lab.kernel") in found
    assert ("lab.serving", "lab.gpu") not in found
    assert {importer for importer, _ in found} == set(depth) - {"sim"}
    assert not [pair for pair in found if depth[pair[0]] > depth[pair[1]]]


def test_the_paths_that_the_page_names_are_there() -> None:
    named = [path for path in re.findall(r"`([\w<>./-]+/[\w<>./-]*)`", PAGE) if "<" not in path]
    assert "lab/kernel.py" in named
    assert not [path for path in named if not (ROOT / path).exists()]
