"""`smolcls threshold`: the least confidence at which a backend's error stays below a limit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from smolcls.bounds import check_open_fraction
from smolcls.cli.options import load_task, make_classifier, task_option
from smolcls.cli.progress import StepBars
from smolcls.errors import require
from smolcls.measured import families
from smolcls.task import as_task
from smolcls.threshold import Of, ThresholdChoice, choose_threshold

if TYPE_CHECKING:
    from smolcls.data.tables import LabelledText

_SEED = 7


@click.command("threshold")
@click.argument("data", metavar="DATA", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--backend", required=True, metavar="SPEC", help="The backend, such as onnx or ollama:three-type.")
@click.option("--max-error", type=float, required=True, metavar="0..1", help="The limit on the error.")
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Probability that it is kept.")
@click.option(
    "--of", type=click.Choice(get_args(Of)), default="answered", show_default=True,
    help="The error among what is answered, or over all traffic, where what is not answered is no error.",
)  # fmt: skip
@task_option
def command(data: Path, backend: str, max_error: float, confidence: float, of: Of, task_name: str | None) -> None:
    """Choose a threshold on the rows of DATA (JSONL, CSV, Parquet), which the backend was not trained on.

    It is the lowest one whose error is at most --max-error with the probability --confidence, for texts drawn as
    the rows were. Rows of one "family" resemble each other, so that one of them counts, drawn at random.

    \b
    smolcls threshold rows.jsonl --backend onnx --max-error 0.05
    """
    from smolcls.data.tables import label_indices, read_table

    require("scipy.stats", extra="evaluate", purpose="Choosing a threshold")
    for value, option in ((max_error, "--max-error"), (confidence, "--confidence")):
        check_open_fraction(value, option)
    task = as_task(load_task(task_name))
    rows = _one_a_family(read_table(data))
    label_indices(task.names, rows)  # before a model is loaded
    confidences, correct = [], []
    with make_classifier(backend, None, task) as classifier, StepBars() as bars:
        for done, row in enumerate(rows, start=1):  # one at a time, as classify does: batches move probabilities
            prediction = classifier.classify(row.text)
            confidences.append(prediction.confidence)
            correct.append(prediction.label == row.label)
            bars.update(backend, done, len(rows))
    choice = choose_threshold(confidences, correct, max_error=max_error, confidence=confidence, of=of)
    click.echo("\n".join(_summary(choice)))


def _one_a_family(rows: Sequence[LabelledText]) -> list[LabelledText]:
    """One row of each family, in the table's order; a row that names none is a family of its own."""
    draw = random.Random(_SEED)
    members: dict[str, list[int]] = {}
    for place, family in enumerate(families(rows)):
        members.setdefault(family, []).append(place)
    return [rows[place] for place in sorted(draw.choice(places) for places in members.values())]


def _summary(choice: ThresholdChoice) -> list[str]:
    among = "the answered" if choice.of == "answered" else "all rows"
    return [
        f"threshold  {choice.threshold:g}",
        f"answered   {choice.share_answered:.1%} ({choice.answered} of {choice.rows} independent rows)",
        f"error      {choice.observed_error:.2%} of {among} ({choice.errors} wrong), bound {choice.error_bound:.2%}",
        f"promise    at most {choice.max_error:.2%} with probability {choice.confidence:.1%}",
    ]
