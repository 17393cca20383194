"""`smolcls ollama`: models on an Ollama server, here or on another machine."""

from __future__ import annotations

from pathlib import Path

import click

from smolcls import build as builder
from smolcls import publish
from smolcls.cli.output import printable
from smolcls.cli.progress import StepBars
from smolcls.errors import ConfigError
from smolcls.lines import json_line
from smolcls.publish import ServerStatus
from smolcls.task import DEFAULT_TASK, Task

_host = click.option("--host", metavar="ADDRESS", help="The server. [default: OLLAMA_HOST, else 127.0.0.1:11434]")


@click.group("ollama")
def command() -> None:
    """Make, look at, remove and push models on an Ollama server.

    \b
    smolcls ollama create three-type
    smolcls ollama status
    smolcls classify --backend ollama:three-type "fix bug in src/auth.ts and run tests"
    """


@command.command("create")
@click.argument("name")
@click.argument("task_name", metavar="[TASK]", required=False)
@click.option("--run", type=click.Path(file_okay=False, path_type=Path), help="A finished training run's folder.")
@click.option("--modelfile", "file", type=click.Path(dir_okay=False, path_type=Path), help="A Modelfile.")
@_host
def create(name: str, task_name: str | None, run: Path | None, file: Path | None, host: str | None) -> None:
    """Make the model NAME from a TASK's embedded model (three-type), a --run or a --modelfile.

    What is sent goes over HTTP, so that the server may be another machine's. A file that it has is not sent again.
    """
    if sum(given is not None for given in (task_name, run, file)) > 1:
        raise ConfigError("Name one of TASK, --run and --modelfile.")
    with StepBars() as bars:
        if run is not None:
            file = run / builder.MODELFILE
        elif file is None:
            file = builder.build(Task.load(task_name or DEFAULT_TASK), progress=bars.update).modelfile
        sent = publish.create(
            name, file, host=host, progress=lambda done, total: bars.update("sending the model, bytes", done, total)
        )
    click.echo(f"{name} is there" + ("" if sent else "; the server had its file already"))
    click.echo(f'  ollama run {name} "a text"')
    click.echo(f'  smolcls classify --backend ollama:{name} "a text"')


@command.command("status")
@click.argument("model", required=False)
@click.option("--task", "task_name", default=DEFAULT_TASK, show_default=True, metavar="NAME|FILE", help="Its task.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@_host
def status(model: str | None, task_name: str, as_json: bool, host: str | None) -> None:
    """Say whether the server answers, has the MODEL (the task's name by default), and gives log-probabilities.

    The model is asked, which loads it. Exit code 1 where something is missing; the last line says what to do.
    """
    found = publish.status(model, task=task_name, host=host)
    if as_json:
        click.echo(json_line(found.to_dict()))
    else:
        for name, text in _lines(found):
            click.echo(f"{name:<8}  {text}")
    if found.problem is not None:
        raise SystemExit(1)


@command.command("rm")
@click.argument("name")
@_host
def remove(name: str, host: str | None) -> None:
    """Remove the model NAME from the server."""
    publish.remove(name, host=host)
    click.echo(f"removed {name}")


@command.command("push")
@click.argument("name")
@_host
def push(name: str, host: str | None) -> None:
    """Have the server push the model NAME to the registry that its name belongs to."""
    with StepBars() as bars:
        publish.push(name, host=host, progress=lambda done, total: bars.update("pushing the model, bytes", done, total))
    click.echo(f"pushed {name}")


def _lines(found: ServerStatus) -> list[tuple[str, str]]:
    answers = "no answer" if found.version is None else f"answers, version {found.version}"
    lines = [("server", f"{found.address}: {answers}")]
    if found.size_bytes is not None:
        kind = "" if found.quantisation is None else f", {found.quantisation}"
        loaded = "loaded" if found.loaded else "was not loaded, is now"
        lines.append(("model", f"{printable(found.model)}: {found.size_bytes / 1e6:.0f} MB{kind}, {loaded}"))
    if found.label_mass is not None:
        lines.append(("scores", f"log-probabilities: yes; {found.label_mass:.1%} of them on the task's labels"))
    if found.latency_ms is not None:
        lines.append(("speed", f"{found.latency_ms:.0f} ms for one text"))
    if found.problem is not None:
        lines.append(("problem", printable(found.problem)))
    return lines
