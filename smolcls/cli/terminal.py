"""A run's progress and remarks on standard error: bars for people, remarks for logs too."""

from __future__ import annotations

import sys

import click

from smolcls.cli.progress import StepBars
from smolcls.train import Watcher


class Terminal(StepBars, Watcher):
    """One bar a step, with the loss and the time left; remarks stand above it."""

    progress = StepBars.update

    def say(self, remark: str) -> None:
        """Print a remark without tearing the bar."""
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            click.echo(remark, err=True)
