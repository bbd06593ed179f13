"""Functions of CUDA files, quoted on pages as the file has them."""

import re

from lab.record import ROOT
from sim.errors import InputError

FOLDER = ROOT / "lab" / "kernels"


def quoted(which: str) -> str:
    """A function of a CUDA file, as "gemm/gemm_pingpong.cu consumer", with the comment above it.

    Raises InputError where the file or the function does not exist.
    """
    file, _, name = which.partition(" ")
    path = (FOLDER / file).resolve()
    if not path.is_relative_to(FOLDER) or path.suffix not in (".cu", ".cuh") or not path.exists():
        raise InputError(f"{file!r} is no CUDA file of lab/kernels")
    line = r"[^\n{}]+\n"
    # No blank line and no other body before the function's own.
    head = rf"(?P<indent> *)(?! )(?:{line})*?[^\n{{}};]*\b{re.escape(name)}\([^{{}};]*\{{\n"
    text = path.read_text(encoding="utf-8")
    found = re.search(rf"(?:\A|(?<=\n\n)){head}.*?^(?P=indent)\}};?$", text, re.DOTALL | re.MULTILINE)
    if not name or found is None:
        raise InputError(f"lab/kernels/{file} defines no function {name!r}")
    lines = (line.removeprefix(found["indent"]) for line in found[0].splitlines())  # directives stand at the margin
    return "\n".join(["```cuda", *lines, "```"])
