"""`smolcls calibrate`: fits a backend's temperature on held-out rows, and keeps it beside the model."""

from __future__ import annotations

from pathlib import Path

import click

from smolcls import registry
from smolcls.calibration import Calibration, apply_temperature, check_enough
from smolcls.classifier import Classifier
from smolcls.cli.options import load_task, task_option
from smolcls.cli.progress import StepBars
from smolcls.errors import ConfigError
from smolcls.task import Task, as_task

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("calibrate")
@click.argument("data", metavar="DATA", type=_FILE)
@click.option("--backend", required=True, metavar="SPEC", help="The backend, such as onnx:model.onnx.")
@click.option("--out", type=_FILE, help="The file to write; without it calibration.json beside the model.")
@task_option
def command(data: Path, backend: str, out: Path | None, task_name: str | None) -> None:
    """Fit the temperature of a backend on the rows of DATA (JSONL, CSV, Parquet), which it was not trained on.

    It belongs to the task, the backend and the very model file: with another quantisation or other labels, fit it
    again. The backend finds calibration.json beside a model file or folder by itself; another file is given to it
    as calibration=FILE.

    \b
    smolcls calibrate rows.jsonl --backend onnx:model.onnx
    """
    from smolcls import metrics
    from smolcls.data.tables import label_indices, read_table

    metrics.check_installed()  # what is missing is said before the work
    task = as_task(load_task(task_name))
    rows = read_table(data)
    truth = label_indices(task.names, rows)
    check_enough(len(rows))
    with _uncalibrated(backend, task) as classifier, StepBars() as bars:
        path = classifier.calibration_path if out is None else out
        if path is None:
            raise click.UsageError(
                f"{backend} has no model file or folder of yours to keep a calibration beside: give --out FILE."
            )
        scored = []
        for done, row in enumerate(rows, start=1):  # one at a time, as classify does: batches move probabilities
            scored.append(classifier.score_batch([row.text])[0].log_probabilities)
            bars.update(backend, done, len(rows))
        fitted = Calibration.fit(
            scored, truth, task=task.fingerprint, model=classifier.model_fingerprint(), backend=classifier.name
        )
    click.echo(f"{len(rows)} rows    before     after")
    click.echo(f"temperature  {1.0:>6.4f}  {fitted.temperature:>8.4f}")
    before, after = (
        metrics.measure(task.names, [apply_temperature(row, value) for row in scored], truth)
        for value in (1.0, fitted.temperature)
    )
    click.echo(f"NLL          {before.nll:>6.4f}  {after.nll:>8.4f}")
    click.echo(f"ECE          {before.ece:>6.4f}  {after.ece:>8.4f}")
    fitted.save(path)
    click.echo(f"wrote {path}")


def _uncalibrated(backend: str, task: Task) -> Classifier:
    """The backend with a temperature of 1, whatever calibration lies beside its model, be it damaged.

    Raises:
        ConfigError: its models hold a calibration themselves.
    """
    kind = registry.find(backend.partition(":")[0])
    if kind.holds_calibration:
        raise ConfigError(
            f"A model of the backend {kind.name!r} holds the calibration that was fitted in its training. To have "
            "another one, train it again with other validation rows: smolcls train"
        )
    raw = Calibration(1.0, task.fingerprint, "", kind.name, rows=0, nll_before=0.0, nll_after=0.0)
    return registry.load(backend, task=task, calibration=raw)
