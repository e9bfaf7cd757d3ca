"""The program `sweeps`: the table of its verbs. Every verb takes `--json`.

Exit codes: 0 done, 1 failed trials, 2 refused or stopped, 3 stopped by a limit, 4 lost Ray, 130 interrupted, 143 ended
by SIGTERM.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec

import typer

from sweeps.cli.data import data
from sweeps.cli.doctor import doctor
from sweeps.cli.new_file import init
from sweeps.cli.options import BAD_INPUT, INTERRUPTED
from sweeps.cli.plan import budget, estimate, plan
from sweeps.cli.power import power
from sweeps.cli.printing import err, print_json
from sweeps.cli.results import best, compare, import_results, query, report, tables
from sweeps.cli.run import run
from sweeps.cli.status import status
from sweeps.cli.trials import again, analyze, export, predict
from sweeps.cli.verify import verify, versions
from sweeps.cli.watching.verb import watch

P = ParamSpec("P")

app = typer.Typer(
    name="sweeps",
    help="Compare parameter-efficient fine-tuning methods at equal parameters and equal tuning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
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


def _with_error_messages(function: Callable[P, int | None]) -> Callable[P, None]:
    """Return a function that runs a verb, prints all problems of its input, and exits with the error's code (2)."""

    @functools.wraps(function)
    def verb(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = function(*args, **kwargs)
        except KeyboardInterrupt:
            err.print("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except (ValueError, RuntimeError, OSError, MemoryError, ImportError) as error:
            if not _is_user_error(error):
                if not _is_memory_error(error):
                    raise
                err.print(f"error: {_OUT_OF_MEMORY}", style="red")
                raise typer.Exit(BAD_INPUT) from error
            problems = getattr(error, "problems", None)
            lines = [str(p) for p in problems] if problems else [str(error)]
            if kwargs.get("as_json"):
                print_json({"errors": lines})
            for line in lines:
                err.print(f"error: {line}", style="red")
            raise typer.Exit(getattr(error, "exit_code", BAD_INPUT)) from error
        raise typer.Exit(code or 0)

    return verb


_OUT_OF_MEMORY = (
    "memory ran out in this process. Finished trials are kept. Free memory, or raise the limit of the shell "
    "(`ulimit -v`; `ulimit -u` for threads) or of the container, and give the same command again."
)


def _is_memory_error(error: Exception) -> bool:
    """Return whether an exception says that memory is used up: Python's, or torch's of the machine or a device.

    A thread that cannot be started counts too: its stack finds no memory, or a limit on processes is reached.
    """
    from sweeps.backends.memory import out_of_memory  # loads torch

    return out_of_memory(error) or str(error) == "can't start new thread"


def _is_user_error(error: Exception) -> bool:
    """Return whether an error is our packages' own or the system's. Any other exception is a fault in this program."""
    if isinstance(error, OSError):
        return error.errno is not None
    return type(error).__module__.split(".")[0] in {"sweeps", "trainables", "analysis", "randlora"}


VERBS: dict[str, tuple[Callable[..., int | None], str]] = {
    "init": (init, "sweeps init --data folder:leaves --model open_clip:ViT-B-32/openai"),
    "plan": (plan, "sweeps plan my.toml --set search.trials=9"),
    "estimate": (estimate, "sweeps estimate my.toml"),
    "power": (power, "sweeps power my.toml --like results/pilot"),
    "run": (run, "sweeps run my.toml --max-hours 8"),
    "status": (status, "sweeps status results/my-sweep"),
    "watch": (watch, "sweeps watch results/my-sweep --port 8080"),
    "best": (best, "sweeps best results/my-sweep --at lora-4"),
    "report": (report, "sweeps report results/my-sweep"),
    "export": (export, "sweeps export results/my-sweep best --form merged"),
    "predict": (predict, "sweeps predict results/my-sweep best leaf.jpg"),
    "again": (again, "sweeps again results/my-sweep 3fa9"),
    "verify": (verify, "sweeps verify results/my-sweep --again 3"),
    "versions": (versions, "sweeps versions results/my-sweep"),
    "budget": (budget, "sweeps budget --model open_clip:ViT-B-32 --lora-rank 8 --adapt vision"),
    "data": (data, "sweeps data folder:leaves"),
    "query": (query, 'sweeps query results/my-sweep "select * from scaling" --to scaling.csv'),
    "analyze": (analyze, "sweeps analyze cka results/my-sweep"),
    "import": (import_results, "sweeps import paper fig1-clip --to results/paper"),
    "compare": (compare, "sweeps compare results/my-sweep --points 1"),
    "tables": (tables, "sweeps tables results/my-sweep results --format latex"),
    "doctor": (doctor, "sweeps doctor"),
}
"""The verbs by name, each with an example for the end of its `--help`."""
for _name, (_verb, _example) in VERBS.items():
    app.command(_name, epilog=f"Example: {_example}")(_with_error_messages(_verb))


def main(arguments: list[str] | None = None) -> Any:
    """Run the program `sweeps`. `arguments`: None for those of the command line."""
    return app(args=arguments)


if __name__ == "__main__":
    main()
