"""`smolcls evaluate`: classifiers on labelled rows, side by side, with a report and gates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smolcls.classifier import Classifier
from smolcls.cli.options import load_task, make_classifier, task_option
from smolcls.cli.output import printable
from smolcls.cli.progress import StepBars
from smolcls.errors import ConfigError
from smolcls.lines import json_line
from smolcls.task import Task, as_task

if TYPE_CHECKING:
    from smolcls.data.tables import LabelledText
    from smolcls.evaluation import Change, Evaluation, Gate
    from smolcls.evaluation.compare import Labels
    from smolcls.report import Report

_CHAIN, _LINEAR = "chain", "linear"
_FILE = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class _Table:
    """The rows to measure on, and how they are looked at."""

    path: Path
    rows: list[LabelledText]
    columns: tuple[str, ...]
    task: Task


def _table_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the table's argument and options; it gets them as one `_Table`, named `table`."""

    @click.argument("data", metavar="DATA", type=_FILE)
    @click.option("--text", default="text", show_default=True, metavar="COLUMN", help="The column of the texts.")
    @click.option("--label", default="label", show_default=True, metavar="COLUMN", help="The column of the labels.")
    @click.option("--slice", "columns", multiple=True, metavar="COLUMN", help="Measure each of its values too.")
    @click.option("--where", multiple=True, metavar="COLUMN=VALUE", help="Take only such rows.")
    @task_option
    @functools.wraps(command)
    def with_table(
        *, data: Path, text: str, label: str, columns: tuple[str, ...], where: tuple[str, ...], **others: Any
    ) -> None:
        from smolcls.data.tables import label_indices, read_table
        from smolcls.evaluation.slices import columns_of

        task = as_task(load_task(others.pop("task_name")))
        rows = read_table(data, text=text, label=label, where=_filters(where))
        label_indices(task.names, rows)  # before a model is loaded
        command(table=_Table(data, rows, columns_of(rows, columns), task), **others)

    return with_table


@click.command("evaluate")
@_table_options
@click.option(
    "--backend", "backends", multiple=True, metavar="SPEC",
    help="A backend, such as onnx or ollama:three-type; or chain, or chain:CHAIN. [default: chain]",
)  # fmt: skip
@click.option("--report", "folder", type=click.Path(file_okay=False, path_type=Path), help="Write a report there.")
@click.option("--require", "gates", multiple=True, metavar="GATE", help="Such as 'accuracy>=0.95'.")
@click.option("--compare", "older", type=_FILE, metavar="OLD.json", help="The report.json to compare with.")
@click.option("--json", "as_json", is_flag=True, help="Print what report.json holds, without its rows.")
def command(
    table: _Table, backends: tuple[str, ...], folder: Path | None, gates: tuple[str, ...], older: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure backends on the labelled rows of DATA: JSONL, CSV or Parquet.

    Beside them stand two baselines: majority, which always answers the most frequent label, and linear where a
    model is shipped for the task. --backend, --require, --slice and --where may be repeated.

    \b
    smolcls evaluate rows.jsonl --backend rules --backend onnx --report report
    smolcls evaluate rows.csv --label intent --require 'accuracy>=0.95' --require 'recall.workflow>=0.9'

    A gate is a metric, one of >=, <=, > and <, and a number; every named backend must pass it, else the exit code
    is 1. Metrics are accuracy, accuracy_low (of its 95 % interval), macro_f1, ece, brier, nll, sure_error_share,
    mean_ms, p50_ms, p95_ms, and of a label recall, precision and f1.
    """
    from smolcls.evaluation import Gate, read_answers
    from smolcls.report import check_installed, write

    # What is wrong with the options is said before the first text is asked.
    parsed = [Gate.parse(gate, table.task.names) for gate in gates]
    past = None if older is None else read_answers(older)
    if folder is not None:
        check_installed()
    report = _measured(table, backends or (_CHAIN,), parsed, past)
    if as_json:
        click.echo(json_line({key: value for key, value in report.to_dict().items() if key != "rows"}))
    else:
        _show(report)
    if folder is not None:
        click.echo(f"report: {write(report, folder)}", err=True)
    for failure in report.failures:
        click.echo(f"smolcls: {failure}", err=True)
    if report.failures:
        raise click.exceptions.Exit(1)


def _filters(where: Sequence[str]) -> dict[str, str]:
    found = {}
    for item in where:
        column, sign, value = item.partition("=")
        if not column or not sign:
            raise click.BadParameter(f"expected COLUMN=VALUE; found {item!r}.", param_hint="--where")
        found[column] = value
    return found


def _measured(
    table: _Table, backends: Sequence[str], gates: Sequence[Gate], past: Mapping[str, Labels] | None
) -> Report:
    """The report on the named backends and the baselines."""
    from smolcls.evaluation import changes, majority
    from smolcls.report import Report

    baselines, remarks = [majority(table.task.names, table.rows)], []
    names = list(dict.fromkeys(backends))
    with StepBars() as bars:
        named = [_evaluated(name, table, bars) for name in names]
        if not any(name.partition(":")[0] == _LINEAR for name in names):
            try:
                baselines.append(_evaluated(_LINEAR, table, bars))
            except ConfigError as error:  # none is shipped for the task
                remarks.append(f"Without the linear baseline: {error}")
    found = [gate.failure(evaluation) for gate in gates for evaluation in named]
    return Report(
        data=str(table.path),
        task=table.task.name,
        evaluations=tuple(named),
        baselines=tuple(baselines),
        columns=table.columns,
        changes=() if past is None else tuple(changes(named, past)),
        gates=tuple(map(str, gates)),
        failures=tuple(failure for failure in found if failure is not None),
        remarks=tuple(remarks),
    )


def _evaluated(name: str, table: _Table, bars: StepBars) -> Evaluation:
    from smolcls.evaluation import evaluate

    with _make(name, table.task) as classifier:
        return evaluate(classifier, table.rows, name=name, progress=lambda done, total: bars.update(name, done, total))


def _make(name: str, task: Task) -> Classifier:
    kind, _, chain = name.partition(":")
    if kind == _CHAIN:
        return make_classifier(None, chain or None, task)
    return make_classifier(name, None, task)


def _show(report: Report) -> None:
    """The table for people."""
    for remark in report.remarks:
        click.echo(printable(remark), err=True)
    width = max(len(printable(item.name)) for item in report.everyone)
    click.echo(f"{'':<{width}}   rows  accuracy  (95 %)          macro-F1    ECE  Brier    NLL   mean ms")
    for item in report.everyone:
        found, interval = item.metrics, item.metrics.accuracy_interval
        click.echo(
            f"{printable(item.name):<{width}}  {found.rows:5}    {found.accuracy:6.1%}  ({interval.low:5.1%} – "
            f"{interval.high:5.1%})    {found.macro_f1:.3f}  {found.ece:.3f}  {found.brier:.3f}  {found.nll:.3f}  "
            f"{item.latency.mean_ms:8.1f}"
        )
    for change in report.changes:
        click.echo(_in_words(change))


def _in_words(change: Change) -> str:
    return (
        f"{printable(change.name)}: {change.accuracy_before:.1%} before, {change.accuracy_after:.1%} now on "
        f"{change.rows} rows; {len(change.flips)} answers flipped, {change.gained} to right, {change.lost} to wrong "
        f"(McNemar's p {change.p_value:.3f})"
    )
