"""The command line of the launchers: a function and the options that all of them share become a command."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ferdist.errors import RunError, exit_code, tell
from launch.backends import Options

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped config.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the training config.")
]


def run_launcher(launch: Callable[..., int], argv: Sequence[str] | None = None) -> int:
    """Run a launcher's command line.

    Args:
        launch: its arguments and own options, annotated for typer, and ``options``, which takes the shared
            ones; returns the exit code. Its docstring is the help.
        argv: the arguments, or None for those of this process.

    Returns:
        0; 1 if a run has failed or the launcher cannot continue, with one line on stderr; 2 for wrong usage.
    """
    hints = {**get_type_hints(launch, include_extras=True), **get_type_hints(Options, include_extras=True)}
    own = [one for one in inspect.signature(launch).parameters.values() if one.name != "options"]
    shared = inspect.signature(Options).parameters.values()

    def command(**values: Any) -> None:
        options = Options(**{field.name: values.pop(field.name) for field in fields(Options)})
        try:
            raise typer.Exit(launch(**values, options=options))
        except OSError as error:
            raise RunError(f"{error.filename or 'unexpected'}: {error.strerror or error}") from None
        except KeyboardInterrupt:
            tell("ferdist: interrupted; jobs on a cluster continue: run the same command to see them")
            raise typer.Exit(130) from None

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [one.replace(kind=keyword, annotation=hints[one.name]) for one in (*own, *shared)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = hints
    command.__doc__ = launch.__doc__
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(epilog="--debug, anywhere on the line, shows the traceback of an error.")(command)
    # submitit's messages go to stdout, which is for results; its errors arrive here as exceptions.
    logging.getLogger("submitit").setLevel(logging.CRITICAL)
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = f"python -m launch.{Path(inspect.getfile(launch)).stem}"
    rest = [argument for argument in arguments if argument != "--debug"]
    return exit_code(lambda: app(rest, prog_name=name), debug=len(rest) < len(arguments))
