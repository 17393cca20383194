"""`smolcls build`: base weights, adapter and recipe become a quantised model."""

from __future__ import annotations

import shlex

import click

from smolcls import build as builder
from smolcls.cli.progress import StepBars
from smolcls.export.quantize import KINDS
from smolcls.task import DEFAULT_TASK, SHIPPED_TASKS, Task

quantisation_option = click.option(
    "--quantisation", metavar="KIND",
    help=f"F16, {', '.join(KINDS)}. [default: {builder.BUNDLED_QUANTISATION} of the bundled base, "
    f"else {builder.QUANTISATION}]",
)  # fmt: skip


@click.command("build")
@click.argument("task_name", metavar="[TASK]", default=DEFAULT_TASK)
@click.option(
    "--base", default="bundled", show_default=True, metavar="BASE",
    help="The base: bundled, a GGUF file, a Hugging Face folder, or a Hub id.",
)  # fmt: skip
@click.option(
    "--format", type=click.Choice(list(builder.FORMATS)), default=builder.GGUF, show_default=True,
    help="gguf is for llama.cpp and Ollama and comes with a Modelfile; onnx, in eight bit, is for ONNX Runtime.",
)  # fmt: skip
@quantisation_option
@click.option("--force", is_flag=True, help="Build even where a build is there.")
def command(task_name: str, base: str, format: str, quantisation: str | None, force: bool) -> None:
    """Build the model of a TASK (three-type, or a TOML file) in the user's cache.

    The first `smolcls classify` does this by itself for the embedded default. Nothing is downloaded
    unless BASE is a Hub id. SMOLCLS_CACHE names another folder.

    \b
    smolcls build
    smolcls build mine.toml --base runs/mine/merged --format onnx
    """
    task = Task.load(task_name)
    with StepBars() as bars:
        built = builder.build(
            task, base=base, quantisation=quantisation, format=format, force=force, progress=bars.update
        )
    size = built.model.stat().st_size / 1e6
    click.echo(f"{'built' if built.fresh else 'found'} {built.model} ({size:.0f} MB)")
    if format == builder.ONNX:
        own = "" if task.name in SHIPPED_TASKS else f" --task {shlex.quote(task_name)}"
        click.echo(f'smolcls classify --backend onnx:{shlex.quote(str(built.model))}{own} "a text"')
        return
    click.echo(f"Modelfile {built.modelfile}")
    click.echo(f"with Ollama: ollama create {task.name} -f {shlex.quote(str(built.modelfile))}")
