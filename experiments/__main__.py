"""The `lab` command."""

import sys

from experiments.cli import run_command
from experiments.cli.output import prepare_streams


def main() -> None:
    """Run the command line and exit with its code."""
    prepare_streams()
    sys.exit(run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
