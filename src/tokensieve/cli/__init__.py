"""The command line: each command reads options and prints one table or one JSON object. One file per command.

torch, timm and rich are imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Annotated, Any, ClassVar

import typer

from .. import __version__
from ..errors import SettingError, SieveError, first_line
from .about import doctor, methods, models
from .bench import bench
from .correct import correct
from .demo import demo
from .evaluate import evaluate
from .export import export
from .heal import heal
from .opening import option_for
from .options import with_groups
from .output import say
from .page import page
from .run import run
from .segment import segment
from .show import show
from .slim import slim
from .train import train
from .train_options import WithKinds
from .train_proposal import proposal
from .train_segment import dtop
from .train_segment import segment as train_segment
from .tune import tune


def _command(function: Any) -> Any:
    """A click command from a function, outside of the app."""
    command_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    command_app.command()(function)
    return typer.main.get_command(command_app)


INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""


class Train(WithKinds):
    """`tokensieve train` with its sub-commands segment, dtop and proposal."""

    kinds: ClassVar = {
        "segment": _command(with_groups(train_segment)),
        "dtop": _command(with_groups(dtop)),
        "proposal": _command(with_groups(proposal)),
    }


app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(with_groups(demo))
app.command("app")(with_groups(page))
app.command()(with_groups(bench))
app.command("eval")(with_groups(evaluate))
app.command()(with_groups(export))
app.command()(methods)
app.command()(models)
app.command()(doctor)
app.command()(with_groups(correct))
app.command()(with_groups(heal))
app.command()(with_groups(run))
app.command()(segment)
app.command()(with_groups(show))
app.command()(with_groups(slim))
app.command(cls=Train)(train)
app.command()(with_groups(tune))


def _show_version(show: bool) -> None:
    if show:
        typer.echo(f"tokensieve {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, version: VersionOption = False) -> None:
    """Let a pretrained vision transformer read only the tokens that matter, and know what it costs."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _sentence(error: Exception) -> str | None:
    """The message for an error that the user can correct; None for a bug in tokensieve, which keeps its traceback."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used: {error.strerror}."
    if isinstance(error, SettingError):
        return f"{option_for(error.setting)} {error.problem}"
    if isinstance(error, SieveError | OSError):
        return str(error)
    if hasattr(error, "format_message"):  # errors of click: unknown options, values out of range
        return error.format_message()
    if isinstance(error, RuntimeError) and "memory" in str(error):
        return f"Out of memory, a smaller batch may fit: {first_line(error)}."
    return None


@contextmanager
def _terminable() -> Iterator[list[int]]:
    """Make SIGTERM end a command as Ctrl-C does, so that work done so far is saved; yields the signals received."""
    signals: list[int] = []

    def end(number: int, _frame: object) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    if current_thread() is not main_thread():  # signal handlers can only be set in the main thread
        yield signals
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> int:
    """Run the command line. Exit code 2 and one line on stderr for errors that the user can correct; 130 after Ctrl-C
    and 143 after SIGTERM, unless the command handles them itself and saves its work."""
    with _terminable() as signals:
        return _run(signals)


def _run(signals: list[int]) -> int:
    try:
        status = app(prog_name="tokensieve", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        say(" ".join(sentence.split()))
        return 2
    if status == INTERRUPTED:  # newer versions of typer catch the interrupt and return this
        say("ended by SIGTERM." if signals else "ended by Ctrl-C.")
        return 128 + signal.SIGTERM if signals else INTERRUPTED
    return status if isinstance(status, int) else 0
