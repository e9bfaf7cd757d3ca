"""The command line: a file and a few verbs. Every verb takes `--json`.

Exit codes: 0 done, 1 finished with failed trials, 2 bad input, 3 stopped by a limit, 4 lost Ray, 130 interrupted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec

import typer

from sweeps.cli.data import data
from sweeps.cli.doctor import doctor
from sweeps.cli.options import BAD_INPUT, INTERRUPTED
from sweeps.cli.plan import budget, estimate, init, plan
from sweeps.cli.printing import err, print_json
from sweeps.cli.results import best, compare, import_results, mcnemar, query, report, tables
from sweeps.cli.run import run
from sweeps.cli.status import status
from sweeps.cli.trials import again, analyze, export, predict

P = ParamSpec("P")

app = typer.Typer(
    name="sweeps",
    help="Compare parameter-efficient fine-tuning methods at equal parameters and equal tuning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"sweeps {version('randlora-sweeps')}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Compare parameter-efficient fine-tuning methods at equal parameters and equal tuning."""


def _guarded(function: Callable[P, int | None]) -> Callable[P, None]:
    """Run a verb; say everything that is wrong with its input, and leave with code 2, or the error's own."""

    @functools.wraps(function)
    def verb(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = function(*args, **kwargs)
        except KeyboardInterrupt:
            err.print("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except (ValueError, RuntimeError, OSError) as error:
            if not _is_user_error(error):
                raise
            problems = getattr(error, "problems", None)
            lines = [str(p) for p in problems] if problems else [str(error)]
            if kwargs.get("as_json"):
                print_json({"errors": lines})
            for line in lines:
                err.print(f"error: {line}", style="red")
            raise typer.Exit(getattr(error, "exit_code", BAD_INPUT)) from error
        raise typer.Exit(code or 0)

    return verb


def _is_user_error(error: Exception) -> bool:
    """Our packages' own errors, and a disk that is full or closed; any other exception is a fault of ours."""
    if isinstance(error, OSError):
        return error.errno is not None
    return type(error).__module__.split(".")[0] in {"sweeps", "trainables", "analysis", "randlora"}


VERBS: dict[str, Callable[..., int | None]] = {
    "init": init,
    "plan": plan,
    "estimate": estimate,
    "run": run,
    "resume": run,
    "status": status,
    "best": best,
    "report": report,
    "export": export,
    "predict": predict,
    "again": again,
    "budget": budget,
    "data": data,
    "query": query,
    "analyze": analyze,
    "import": import_results,
    "compare": compare,
    "mcnemar": mcnemar,
    "tables": tables,
    "doctor": doctor,
}
for _name, _verb in VERBS.items():
    app.command(_name, help="The same as `run`." if _name == "resume" else None)(_guarded(_verb))


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of the program `sweeps`."""
    return app(args=arguments)


if __name__ == "__main__":
    main()
