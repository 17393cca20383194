"""`smolcls train`: rows become a fine-tuned, quantised model with its Modelfile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from smolcls import publish
from smolcls.cli.build import quantisation_option
from smolcls.cli.terminal import Terminal
from smolcls.errors import ConfigError
from smolcls.task import DEFAULT_TASK
from smolcls.train import TrainConfig, train
from smolcls.train.config import ENGINES, LINEAR, PRECISIONS, PRESETS

#: Settings that are plain numbers: the option's name is the setting's, with dashes.
_NUMBERS: dict[str, tuple[type, str]] = {
    "epochs": (float, "Passes over the rows."),
    "learning_rate": (float, "The peak of the cosine schedule."),
    "rank": (int, "LoRA's rank."),
    "alpha": (int, "LoRA's alpha."),
    "dropout": (float, "LoRA's dropout."),
    "batch": (int, "Rows a forward pass."),
    "accumulation": (int, "Passes an optimiser step."),
    "warmup": (int, "Warm-up steps of a run of 1,000; shorter runs take the same share."),
    "max_norm": (float, "Gradients are clipped to this norm."),
    "weight_decay": (float, "AdamW's."),
    "max_length": (int, "Longer rows, in tokens, are left out."),
    "pass_tokens": (int, "Tokens computed at once by the engine shared; bounds its memory."),
    "evaluations": (int, "How often the validation rows are scored and a checkpoint is written."),
    "patience": (int, "Evaluations without progress after which training stops; 0 never stops."),
    "hours": (float, "Warn where the training will take longer."),
    "seed": (int, "Of the split, the order of rows, the initialisation and dropout."),
}
_File = click.Path(dir_okay=False, path_type=Path)


def _number_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for name, (kind, text) in reversed(_NUMBERS.items()):
        function = click.option(f"--{name.replace('_', '-')}", name, type=kind, help=text)(function)
    return function


@click.command("train", epilog="Settings that are left out suit the engine and the preset.")
@click.option(
    "--task", "task_name", metavar="NAME|FILE", help=f"The task: a TOML file, or {DEFAULT_TASK}, which is the default."
)
@click.option(
    "--data", default="shipped", show_default=True, metavar="FILE|shipped",
    help='Rows: JSONL with "text" and "label", and "family" where texts are variations of one.',
)  # fmt: skip
@click.option("--validation", type=_File, help="Rows to watch and calibrate on; else a tenth of --data.")
@click.option("--test", type=_File, help="Rows to measure on at the end; else a tenth of --data.")
@click.option(
    "--base", default="bundled", show_default=True, metavar="BASE",
    help="The base: bundled, a GGUF file, a Hugging Face folder, or a Hub id.",
)  # fmt: skip
@click.option(
    "--keep-layers", metavar="COUNT|LAYERS",
    help="Keep only the base's first COUNT layers, or LAYERS such as 0-17,28-29.",
)  # fmt: skip
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="The run's folder.")
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="auto",
    show_default=True,
    help="What trains; linear makes a small model of n-grams.",
)
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Settings for a run that did not go well.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, with its settings and rows.")
@_number_options
@click.option(
    "--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True,
    help="What matrices are multiplied in; auto takes bfloat16 where the machine has instructions for it.",
)  # fmt: skip
@click.option("--four-bit/--no-four-bit", default=True, help="On CUDA, keep the base in 4 bit. [default: on]")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's files below OUT/checkpoints.")
@quantisation_option
@click.option("--create", "name", metavar="NAME", help="Hand the model to the Ollama server under this name.")
def command(task_name: str | None, resume: bool, name: str | None, **settings: Any) -> None:
    """Train a model on labelled rows, and export it: GGUF, ONNX, Modelfile, calibration, metrics, model card.

    The engine linear takes seconds, and makes a model of n-grams: the cheap first stage of a chain.

    \b
    smolcls train --data rows.jsonl --task mine.toml --out runs/mine
    smolcls train --data shipped --out runs/three-type --preset regularised
    smolcls train --data rows.jsonl --task mine.toml --out runs/fast --engine linear

    A run that was interrupted goes on with: smolcls train --resume --out runs/mine
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if name is not None and given["engine"] == LINEAR:
        raise ConfigError("Ollama cannot serve a linear model; leave --create out.")
    with Terminal() as terminal:
        run = train(TrainConfig(**given), task=task_name, resume=resume, watcher=terminal)
    card = f"; its card is {run.card}" if run.card.is_file() else ""
    click.echo(f"trained {run.model} ({run.model.stat().st_size / 1e6:.1f} MB){card}")
    found = run.read(run.metrics.name)["test"]
    click.echo(f"test accuracy {found['accuracy']:.1%} on {found['rows']} rows, ECE {found['ece']:.3f}")
    if name is not None:
        publish.create(name, run.modelfile)
        click.echo(f"Ollama has it as {name}")
    for line in run.commands():
        click.echo(f"  {line}")
