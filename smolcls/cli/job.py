"""The options of a large job, and the job as the command line shows it."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from smolcls.cli.options import Choice
from smolcls.cli.progress import FileBar
from smolcls.errors import SmolclsError

if TYPE_CHECKING:
    from smolcls.jobs import Progress


@dataclass(frozen=True, slots=True)
class Job:
    """What the options of a job say."""

    out: Path | None
    processes: int
    resume: bool
    force: bool

    def check(self, path: Path | None, *, explain: bool) -> None:
        """Check the options against each other and those of the command.

        Args:
            path: the file that is read, None for arguments and standard input.

        Raises:
            click.UsageError: two of them do not go together.
        """
        if path is None and (self.out is not None or self.processes > 1):
            raise click.UsageError("--out and --jobs are for a --file, and not for standard input.")
        if self.out is None and (self.resume or self.force):
            raise click.UsageError("--resume and --force are about the file of --out: give it too.")
        if self.resume and self.force:
            raise click.UsageError("--resume goes on, --force begins anew: give one of them.")
        if self.out is not None and explain:
            raise click.UsageError("--explain is for people; the answers in --out have it as trace.")


def job_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a large job; it gets them as one `Job`, named `job`."""

    @click.option(
        "--out", type=click.Path(dir_okay=False, path_type=Path),
        help="Write the answers of --file to this file, as --json prints them. It is written as the job goes.",
    )  # fmt: skip
    @click.option("--resume", is_flag=True, help="Go on behind the last whole answer in --out.")
    @click.option("--force", is_flag=True, help="Replace --out where it is there.")
    @click.option(
        "--jobs", "processes", type=click.IntRange(min=1), default=1, show_default=True,
        help="Processes for a --file. They help rules and linear; models use all cores by themselves.",
    )  # fmt: skip
    @functools.wraps(command)
    def with_job(*, out: Path | None, resume: bool, force: bool, processes: int, **others: Any) -> None:
        command(job=Job(out, processes, resume, force), **others)

    return with_job


def run_job(path: Path, out: Path, choice: Choice, job: Job) -> Progress:
    """Classify the file into another with a bar; what ends it early says how to go on.

    Raises:
        SmolclsError: as `smolcls.jobs.classify_file`.
    """
    from smolcls import jobs

    done = 0

    def show(progress: Progress) -> None:
        nonlocal done
        done = progress.rows
        bar.update(progress.read, progress.rows)

    existing: jobs.Existing = "resume" if job.resume else "force" if job.force else "error"
    try:
        with FileBar(path.stat().st_size, quiet=not sys.stderr.isatty()) as bar:
            end = jobs.classify_file(
                path, out, choice.make, processes=job.processes, existing=existing, progress=show
            )  # fmt: skip
    except (KeyboardInterrupt, SmolclsError):
        if done > 0:
            click.echo(f"smolcls: {done} answers are kept in {out}. Go on with:\n{_going_on()}", err=True)
        raise
    click.echo(f"wrote {out} ({end.rows} answers)")
    return end


def _going_on() -> str:
    """The command that resumes the job that this one began, for a shell."""
    context = click.get_current_context()
    words = ["smolcls", "classify"]
    for option in context.command.params:
        name = option.name or ""
        if name in {"resume", "force"} or context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        words.append(option.opts[0])
        if not isinstance(value, bool):
            words.append(str(value))
    return shlex.join([*words, "--resume"])
