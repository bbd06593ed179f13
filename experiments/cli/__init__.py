"""The `lab` command: one module a verb, and what all of them share: errors, exit codes, output."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from experiments.cli import bench, calibrate, check, compare, counters, env, explain, generate, list_, report, run
from experiments.cli.output import complain, output_error
from sim.errors import EnvironmentFailure, InputError, LabError

INTERRUPTED = 130
_USAGE_ERROR: Any = typer.BadParameter.__base__  # the parser's own complaints; typer has moved its class about


class Verbs(TyperGroup):
    """The verbs; an unknown one is answered with those there are."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is None:
            raise InputError(f"unknown verb {cmd_name!r}; verbs: {', '.join(self.list_commands(ctx))}")
        return command


app = typer.Typer(
    name="lab",
    cls=Verbs,
    help="Kernels of LLM inference on a real and on a simulated GPU: theory, simulation and measurement side by side.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: importing rich for it costs 0.15 s
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(list_.list_)
app.command("explain")(explain.explain)
app.command("check")(check.check)
app.command("run")(run.run)
app.command("bench")(bench.bench)
app.command("calibrate")(calibrate.calibrate)
app.command("counters")(counters.counters)
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("generate")(generate.generate)
app.command("env")(env.env)


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line; failures become one line on standard error and the documented exit code.

    What a kernel's own files did wrong is its author's: file and line, with the compiler's lines as they are.
    """
    try:
        result = app(args=list(arguments) or ["--help"], prog_name="lab", standalone_mode=False)
        sys.stdout.flush()
        if result == INTERRUPTED:  # the parser turns Ctrl-C into this code
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except LabError as error:
        return _fail(error)
    except _USAGE_ERROR as error:
        return _fail(InputError(f"{error.format_message()} See lab --help."))
    except (KeyboardInterrupt, typer.Abort):
        return _fail(LabError("interrupted"), INTERRUPTED)
    except (BrokenPipeError, SystemExit):  # the reader of our output has left, which the parser turns into an exit
        output_error()
        return 0
    except Exception as error:
        if os.environ.get("LAB_DEBUG"):
            traceback.print_exc()
        return _fail(_explained(error))


def _explained(error: Exception) -> LabError:
    """Whose mistake an exception is: of the surroundings, of a kernel's author, or ours."""
    from lab.errors import kernel_error, surroundings_error  # the parser and its help do without lab

    if unwritten := output_error():
        return EnvironmentFailure(f"standard output cannot be written: {unwritten.strerror}")
    ours = LabError(f"this is a bug in the lab ({type(error).__name__}: {error}); LAB_DEBUG=1 shows where")
    return surroundings_error(error) or kernel_error(error) or ours


def _fail(error: LabError, code: int | None = None) -> int:
    complain(error)
    return error.exit_code if code is None else code
