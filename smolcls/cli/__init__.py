"""The command line: it parses, calls and prints. Each command is imported when it is asked for."""

from __future__ import annotations

import importlib
import io
import sys
from typing import IO, Any

import click

from smolcls import __version__
from smolcls.errors import ConfigError, InputError, SmolclsError

#: Command → the module that holds it, and the line that `smolcls --help` shows without importing it.
COMMANDS = {
    "classify": ("smolcls.cli.classify", "Classify texts given as arguments, in a file, or on standard input."),
    "backends": ("smolcls.cli.backends", "Show which backends can be used and, where not, what mends it."),
    "build": ("smolcls.cli.build", "Build the embedded model, or one from another base."),
    "data": ("smolcls.cli.data", "Check, split, vary and write labelled rows."),
    "fit": ("smolcls.cli.fit", "Fit the thresholds of a chain on labelled rows, with a bound on its error."),
    "evaluate": ("smolcls.cli.evaluate", "Measure backends on labelled rows, with a report and gates."),
    "bench": ("smolcls.cli.bench", "Measure what backends cost: latency, throughput, memory, cold start."),
    "calibrate": ("smolcls.cli.calibrate", "Fit a backend's temperature on held-out rows."),
    "threshold": ("smolcls.cli.threshold", "Choose the least confidence that keeps an error below a limit."),
    "train": ("smolcls.cli.train", "Train a model on labelled rows and export it."),
    "export": ("smolcls.cli.export", "Repeat the steps after training."),
    "ollama": ("smolcls.cli.ollama", "Make, look at, remove and push models on an Ollama server."),
}

EXIT_CODES = """\b
Exit codes:
  0    every text was answered
  1    a model or backend could not answer, a line was left unanswered, a gate of evaluate or a backend of bench failed
  2    wrong usage: an option, a text, a file or a setting that cannot be used
  130  interrupted
"""


class _Failure(click.ClickException):
    """An error of smolcls as the command line shows it: in one line, without the usage."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message."""
        click.echo(f"smolcls: {self.message}", file=file, err=file is None)


class _WrongUse(_Failure):
    exit_code = 2


class LazyGroup(click.Group):
    """A group that imports a command's module only to run it, and ends with the exit codes above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself, its module imported now."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table: no import."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors of smolcls and Ctrl-C become what click ends the program with."""
        try:
            return super().invoke(ctx)
        except SmolclsError as error:
            kind = _WrongUse if isinstance(error, (InputError, ConfigError)) else _Failure
            raise kind(str(error)) from error
        except KeyboardInterrupt:
            ctx.exit(130)


@click.group(cls=LazyGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="smolcls")
def group() -> None:
    """Put short texts into labels on this machine, with a small language model that says how sure it is.

    \b
    smolcls classify "fix bug in src/auth.ts and run tests"
    """


def main() -> None:
    """Run the command line and end the program with its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal or pipe with another encoding than UTF-8 must not end the program over one character.
        sys.stdout.reconfigure(errors="replace")
    group()
