"""`smolcls bench`: what backends cost on this machine, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smolcls.cli.options import load_task, task_option
from smolcls.cli.output import printable
from smolcls.cli.progress import StepBars
from smolcls.errors import ConfigError
from smolcls.task import as_task

if TYPE_CHECKING:
    from smolcls.bench.run import BackendResult, BenchResult
    from smolcls.data.tables import LabelledText

_FILE = click.Path(dir_okay=False, path_type=Path)
_COUNT = click.IntRange(min=1)
#: A load average above this share of the cores says that something else runs.
_QUIET = 0.3
_WIDTH = len("beside 2 busy")


@click.command("bench")
@click.argument("data", metavar="DATA", type=_FILE)
@click.option(
    "--backend", "backends", multiple=True, metavar="SPEC",
    help="A backend, such as onnx or ollama:three-type; or chain, or chain:CHAIN. [default: chain]",
)  # fmt: skip
@click.option("--rounds", type=_COUNT, default=5, show_default=True, help="How often each backend is measured.")
@click.option("--calls", type=_COUNT, default=200, show_default=True, help="Single calls a round, spread over DATA.")
@click.option("--batch-size", type=_COUNT, default=32, show_default=True, help="Texts of a batch.")
@click.option(
    "--busy", type=click.IntRange(min=0), default=0, metavar="N",
    help="Measure a second time with N processes that spin beside the backend.",
)  # fmt: skip
@click.option(
    "--timeout", type=_COUNT, default=1800, show_default=True, metavar="SECONDS",
    help="A process that takes longer, as one that hangs, is killed, and its backend has failed.",
)  # fmt: skip
@click.option("--json", "json_file", type=_FILE, metavar="FILE", help="Write all figures and conditions there.")
@click.option("--text", default="text", show_default=True, metavar="COLUMN", help="The column of the texts.")
@click.option("--label", metavar="COLUMN", help="The column of the labels. [default: label, where there is one]")
@task_option
@click.pass_context
def command(
    ctx: click.Context, /, data: Path, backends: tuple[str, ...], json_file: Path | None, text: str, label: str | None,
    task_name: str | None, **numbers: int,
) -> None:  # fmt: skip
    """Measure what backends cost on the texts of DATA (JSONL, CSV or Parquet): time, memory, and what they get right.

    \b
    smolcls bench rows.jsonl --backend rules --backend onnx
    smolcls bench rows.jsonl --backend onnx --backend ollama:three-type --busy 2 --json bench.json

    In each round every backend is started once, in a process of its own, and shown is the median over the rounds.

    \b
    accuracy           share of the rows answered rightly; only where DATA has labels
    import load first  start of a process to its first answer, in ms: importing, making the backend, the answer;
                       files are in the system's cache, and Python's own start is not counted
    p50 p95 p99        one call, in ms, after a warm-up
    texts/s            in batches
    tokens/s (of raw)  prompt tokens evaluated in single calls and in batches, and how fast that is as a share of
                       the runtime alone on the same tokens, which is the limit; where a backend tells
    MB                 the process at its peak, mapped files included; of ollama the client alone

    The exit code is 1 if a backend failed; the others are measured all the same.
    """
    from smolcls.bench.run import Plan, bench
    from smolcls.data.tables import label_indices, read_table

    rows = read_table(data, text=text, label=label or "label", labelled=label is not None)
    labels = _labels(rows)
    if labels is not None:
        label_indices(as_task(load_task(task_name)).names, rows)
    plan = Plan(backends or ("chain",), task_name, **numbers)
    with StepBars() as bars:
        found = bench(
            plan, [row.text for row in rows], labels,
            lambda done, total, note: bars.update("measuring", done, total, printable(note)),
        )  # fmt: skip
    _show(found, json_file, data)
    if any(item.failure is not None for item in found.backends):
        ctx.exit(1)


def _labels(rows: list[LabelledText]) -> list[str] | None:
    return [row.label for row in rows] if rows[0].label else None


def _show(found: BenchResult, json_file: Path | None, data: Path) -> None:
    """The tables for people, what failed, and the file."""
    measured = [item for item in found.backends if item.failure is None]
    load, cores = found.conditions["load_average"], found.conditions["usable_cores"]
    if load is not None and load > _QUIET * cores:
        click.echo(f"The machine was not idle when this began: load average {load:g} on {cores} cores.", err=True)
    for condition in measured[0].rounds if measured else ():
        busy = found.conditions["busy"]
        click.echo("\n".join(_table(condition if condition == "idle" else f"beside {busy} busy", condition, measured)))
    for item in found.backends:
        if item.failure is not None:
            click.echo(f"smolcls: {printable(item.name)}: {printable(item.failure)}", err=True)
    if json_file is not None:
        _write(json_file, {**found.to_dict(), "data": str(data)})


def _write(path: Path, content: dict[str, Any]) -> None:
    from smolcls.files import write_text

    try:
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror or error}. Name another file with --json."
        ) from error


def _table(title: str, condition: str, measured: list[BackendResult]) -> list[str]:
    width = max(_WIDTH, *(len(printable(item.name)) for item in measured))
    lines = [
        f"{title:<{width}}  accuracy  import   load  first     p50     p95     p99  texts/s   tokens/s (of raw)"
        "   in batches     MB"
    ]
    for item in measured:
        found = item.medians(condition)
        starts = "".join(f"{_milliseconds(found[name]):>7}" for name in ("import_ms", "load_ms", "first_ms"))
        calls = "".join(f"{_milliseconds(found[name]):>8}" for name in ("p50_ms", "p95_ms", "p99_ms"))
        lines.append(
            f"{printable(item.name):<{width}}  {_share(item.accuracy):>8} {starts}{calls}  "
            f"{_number(found['texts_per_second']):>7}  {_tokens(found, 'call'):>18}  {_tokens(found, 'batch'):>11}  "
            f"{_number(found['peak_mb']):>5}"
        )
    return lines


def _tokens(found: dict[str, float | None], kind: str) -> str:
    share = found[f"{kind}_of_raw"]
    return _number(found[f"{kind}_tokens_per_second"]) + ("" if share is None else f" ({share:.0%})")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
