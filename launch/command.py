"""The command line of the launchers: a function and the options that all of them share become a command."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ferdist.errors import FerdistError, Preempted, tell
from launch.backends import Options

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")]
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
    names = {field.name for field in fields(Options)}

    def command(**values: Any) -> None:
        def body() -> int:
            options = Options(**{name: values.pop(name) for name in names})
            return launch(**values, options=options)

        raise typer.Exit(_speak(body))

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[one.name])
            for one in (*own, *shared)
        ]
    )
    command.__annotations__ = hints
    command.__doc__ = launch.__doc__
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    try:
        app(argv, prog_name=f"python -m launch.{Path(inspect.getfile(launch)).stem}")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _speak(body: Callable[[], int]) -> int:
    """An exit code, with one line on stderr where the launcher cannot continue."""
    # submitit's messages go to stdout, which is for results; its errors arrive here as exceptions.
    logging.getLogger("submitit").setLevel(logging.CRITICAL)
    try:
        return body()
    except Preempted as error:
        tell(f"ferdist: {error}")
        return os.EX_TEMPFAIL
    except FerdistError as error:
        tell(f"ferdist: {error}")
        return 1
    except OSError as error:
        tell(f"ferdist: {error.filename or 'unexpected'}: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        tell("ferdist: interrupted; jobs on a cluster continue: run the same command to see them")
        return 130
