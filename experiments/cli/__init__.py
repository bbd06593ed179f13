"""The `lab` command: one module a verb, and what all of them share: errors, exit codes, output."""

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from experiments.cli import (
    bench,
    bench_serve,
    calibrate,
    check,
    compare,
    counters,
    demo,
    emulate,
    env,
    explain,
    fit,
    generate,
    journal,
    list_,
    report,
    run,
    serve,
    sweep,
    tune,
    validate,
)
from experiments.cli.output import complain, emit, output_error, say
from sim.errors import EnvironmentFailure, InputError, LabError

INTERRUPTED = 130
_USAGE_ERROR: Any = typer.BadParameter.__base__  # the parser's own complaints; typer has moved its class about


class Verbs(TyperGroup):
    """The verbs, some of two words; an unknown one is answered with those there are."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if (both := " ".join(args[:2])) in self.list_commands(ctx):
            return both, self.get_command(ctx, both), args[2:]
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is None:
            raise InputError(f"unknown verb {cmd_name!r}; verbs: {', '.join(self.list_commands(ctx))}")
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Each verb with the whole first sentence of its help, which the parser would cut."""
        helps = {name: self.get_command(ctx, name).help or "" for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl([(name, text.partition("\n\n")[0].replace("\n", " ")) for name, text in helps.items()])


app = typer.Typer(
    name="lab",
    cls=Verbs,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: importing rich for it costs 0.15 s
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if not asked:
        return
    from lab.record import commit, versions

    at, changed = commit()
    print(f"lab {versions().get('kernel-lab', '(not installed)')}, commit {at[:8]}{' with changes' * changed}")
    raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and the commit, and exit."),
]


@app.callback()
def lab(version: Version = False) -> None:
    """Kernels of LLM inference on a real and on a simulated GPU: theory, simulation and measurement side by side."""


app.command("list")(list_.list_)
app.command("explain")(explain.explain)
app.command("check")(check.check)
app.command("run", cls=run.WithOptions)(run.run)
app.command("sweep")(sweep.sweep)
app.command("bench")(bench.bench)
app.command("bench serve")(bench_serve.bench_serve)
app.command("tune")(tune.tune)
app.command("calibrate")(calibrate.calibrate)
app.command("fit")(fit.fit)
app.command("counters")(counters.counters)
app.command("report")(report.report)
app.command("validate")(validate.validate)
app.command("compare")(compare.compare)
app.command("demo")(demo.demo)
app.command("generate")(generate.generate)
app.command("emulate")(emulate.emulate)
app.command("serve")(serve.serve)
app.command("journal")(journal.journal)
app.command("env")(env.env)


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line; failures become one line on standard error and the documented exit code.

    What a kernel's own files did wrong is its author's: file and line, with the compiler's lines as they are. With
    --json a failure is a document on standard output too.
    """
    code, failure = _run(list(arguments))
    if failure:
        complain(failure)
        if "--json" in arguments:
            _emit_failure(failure, code)
    return code


def _run(arguments: list[str]) -> tuple[int, LabError | None]:
    """(exit code, what failed)."""
    try:
        result = app(args=arguments or ["--help"], prog_name="lab", standalone_mode=False)
        sys.stdout.flush()
        if result == INTERRUPTED:  # the parser turns Ctrl-C into this code
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0, None
    except LabError as error:
        return error.exit_code, error
    except _USAGE_ERROR as error:
        return InputError.exit_code, InputError(f"{error.format_message()} See lab --help.")
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED, LabError("interrupted")
    except (BrokenPipeError, SystemExit):  # the reader of our output has left, which the parser turns into an exit
        output_error()
        return 0, None
    except Exception as error:
        if os.environ.get("LAB_DEBUG"):
            traceback.print_exc()
        failure = _explained(error)
        return failure.exit_code, failure


def _emit_failure(failure: LabError, code: int) -> None:
    said = {"error": {"kind": type(failure).__name__, "message": str(failure), "exit_code": code}}
    with suppress(OSError):  # it is said on standard error
        emit(said, True, say)
        sys.stdout.flush()


def _explained(error: Exception) -> LabError:
    """Whose mistake an exception is: of the surroundings, of a kernel's author, or ours."""
    from lab.errors import kernel_error, surroundings_error  # the parser and its help do without lab

    if unwritten := output_error():
        return EnvironmentFailure(f"standard output cannot be written: {unwritten.strerror}")
    ours = LabError(f"this is a bug in the lab ({type(error).__name__}: {error}); LAB_DEBUG=1 shows where")
    return surroundings_error(error) or kernel_error(error) or ours
