"""`smolcls export`: the steps after training, again or alone."""

from __future__ import annotations

from pathlib import Path

import click

from smolcls.cli.terminal import Terminal
from smolcls.train import Run, export
from smolcls.train.steps import STEPS


@click.command("export")
@click.argument("folder", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--step", "steps", multiple=True, type=click.Choice(list(STEPS)), help="Do this step alone, once more.")
def command(folder: Path, steps: tuple[str, ...]) -> None:
    """Export a trained RUN: do the steps that are not done, or those that are named.

    \b
    adapter    the best checkpoint's adapter, in F16
    gguf       the merged model as GGUF in F16
    quantise   the quantised model
    onnx       the model in eight bit for ONNX Runtime, with its temperature
    modelfile  the Modelfile
    merge      the merged model as a Hugging Face folder
    score      the held-out rows, through the quantised model
    calibrate  the temperature
    evaluate   the metrics
    card       the model card
    record     run.json
    """
    with Terminal() as terminal:
        run = export(Run(folder), steps or None, watcher=terminal)
    click.echo(f"exported {run.model}")
    for line in run.commands():
        click.echo(f"  {line}")
