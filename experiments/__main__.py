"""The `lab` command."""

import gc
import sys
from importlib.util import find_spec
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_OWN = ("sim", "lab")  # the packages below this one, which have names that other folders have too
_WRONG_SURROUNDINGS = 4  # the exit code of sim.errors.EnvironmentFailure, which may be another's


def main() -> None:
    """Run the command line and exit with its code."""
    if complaint := _stranger() or _stripped():
        print(f"lab: {complaint}", file=sys.stderr)
        sys.exit(_WRONG_SURROUNDINGS)
    gc.set_threshold(100_000)  # what is imported stays: to look for garbage among it takes a tenth of the start
    from experiments.cli import run_command
    from experiments.cli.output import prepare_streams

    prepare_streams()
    sys.exit(run_command(sys.argv[1:]))


def _stranger() -> str:
    """One sentence on a package that would be imported in place of the lab's own; empty where none is in the way."""
    for name in _OWN:
        spec = find_spec(name)
        folders = [Path(folder).resolve() for folder in (spec and spec.submodule_search_locations) or ()]
        if folders != [_ROOT / name]:
            found = spec.origin if spec and not folders else folders[0] if folders else "nothing"
            return (
                f"Python finds {found} in place of the lab's own {_ROOT / name}: "
                "start where there is no such folder, and take it out of PYTHONPATH"
            )
    return ""


def _stripped() -> str:
    """One sentence where Python has taken the docstrings away, of which help and lists are made; else empty."""
    return "Python must keep docstrings: no -OO, no PYTHONOPTIMIZE=2" if sys.flags.optimize > 1 else ""


if __name__ == "__main__":
    main()
