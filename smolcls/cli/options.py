"""Options that several commands share, and the classifier they name."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import click

from smolcls import registry, settings
from smolcls.classifier import Classifier, check_fraction
from smolcls.errors import SmolclsError
from smolcls.router import ConfidenceRouter
from smolcls.task import Task

task_option = click.option(
    "--task", "task_name", metavar="NAME|FILE", help="The task: three-type, or a TOML file. [default: three-type]"
)
backend_option = click.option(
    "--backend", metavar="SPEC", help="One backend instead of the chain, such as onnx or ollama:three-type."
)
chain_option = click.option(
    "--chain",
    metavar="CHAIN",
    help="The chain: a TOML file, or a list such as rules@0.99,onnx@0.8,rules, or default. "
    "Without it SMOLCLS_CHAIN, a smolcls.toml or the default chain is taken.",
)
min_confidence_option = click.option(
    "--min-confidence", type=float, metavar="0..1", help="Below this confidence no label is given."
)


@dataclass(frozen=True, slots=True)
class Choice:
    """The classifier that a command's options name, not made yet."""

    backend: str | None
    chain: str | None
    task_name: str | None
    min_confidence: float | None

    def make(self) -> Classifier:
        """The classifier.

        Raises:
            click.UsageError: two options that exclude each other.
            SmolclsError: it cannot be made; the message says why.
        """
        limit = None if self.min_confidence is None else check_fraction(self.min_confidence, "--min-confidence")
        classifier = make_classifier(self.backend, self.chain, load_task(self.task_name))
        if limit is not None:  # else a smolcls.toml may have one
            classifier.min_confidence = limit
        return classifier


def classifier_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name a classifier; it gets them as one `Choice`, named `choice`."""

    @backend_option
    @chain_option
    @task_option
    @min_confidence_option
    @functools.wraps(command)
    def with_choice(
        *, backend: str | None, chain: str | None, task_name: str | None, min_confidence: float | None, **others: Any
    ) -> None:
        command(choice=Choice(backend, chain, task_name, min_confidence), **others)

    return with_choice


def load_task(name: str | None) -> Task | None:
    """The task of `--task`, or None where it was not given."""
    return None if name is None else Task.load(name)


def make_classifier(backend: str | None, chain: str | None, task: Task | None) -> Classifier:
    """The classifier that `--backend` or `--chain` names, or the default chain.

    Raises:
        click.UsageError: both were given.
        SmolclsError: what was named cannot be used.
    """
    if backend is not None and chain is not None:
        raise click.UsageError("--backend and --chain exclude each other: give one of them.")
    if backend is not None:
        _build_first([backend], task)
        return registry.load(backend, task=task)
    router = settings.default_router(task) if chain is None else settings.router_from(chain, task)
    _build_first(_embedded_stages(router), router.task)
    return router


def _embedded_stages(router: ConfidenceRouter) -> Iterable[str]:
    return [stage.classifier for stage in router.stages if isinstance(stage.classifier, str) and not stage.options]


def _build_first(specifications: Iterable[str], task: Task | None) -> None:
    """Build the embedded default with progress bars where it is wanted, not there yet, and somebody watches.

    It would be built anyway when it is first asked, in silence; a failure is reported then.
    """
    wanted = [name for name in specifications if name in settings.EMBEDDED]
    if not sys.stderr.isatty() or not wanted:
        return
    from smolcls import build
    from smolcls.cli.progress import StepBars

    with StepBars() as bars, contextlib.suppress(SmolclsError):
        for name in wanted:
            build.build(task, format=settings.EMBEDDED[name], progress=bars.update)
