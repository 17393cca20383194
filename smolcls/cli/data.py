"""`smolcls data`: check, split, vary and write labelled rows."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sized
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smolcls.cli.options import load_task, task_option
from smolcls.cli.output import printable
from smolcls.cli.progress import StepBars
from smolcls.lines import json_line
from smolcls.task import as_task

if TYPE_CHECKING:
    from smolcls.data.check import Finding, Report
    from smolcls.data.rows import Row
    from smolcls.data.write import Settings
    from smolcls.task import Task

_SHOWN = 10  # findings of a kind that people get to see
_FILE = click.Path(dir_okay=False, path_type=Path)

files_argument = click.argument("files", nargs=-1, required=True, metavar="FILE...", type=_FILE)
chat_option = click.option("--chat", is_flag=True, help='Write {"messages": [...]} rows; families are lost.')


@click.group("data")
def command() -> None:
    """Check, split, vary and write labelled rows: JSONL of {"text", "label"} or {"messages"}."""


@command.command("check")
@files_argument
@task_option
@click.option("--label-errors", is_flag=True, help="Look for likely label errors too (needs scikit-learn).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def check_command(files: tuple[Path, ...], task_name: str | None, label_errors: bool, as_json: bool) -> None:
    """Check each FILE as one part of a split.

    Problems (exit code 1): lines that are no rows, labels that are not the task's or have no row, texts twice,
    one text with two labels, and families or near-copies that stand in several files. Notes: near-copies of
    different families in one file, labels with ten times the rows of others, texts that will be shortened, and
    likely label errors.
    """
    from smolcls.data.check import check_files

    report = check_files(files, as_task(load_task(task_name)), label_errors=label_errors)
    if as_json:
        click.echo(json_line(report.to_dict()))
    else:
        _show(report)
    if report.problems:
        raise click.exceptions.Exit(1)


@command.command("split")
@files_argument
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="The folder to write to.")
@click.option("--validation", type=float, default=0.06, show_default=True, help="Share of the validation rows.")
@click.option("--test", type=float, default=0.02, show_default=True, help="Share of the test rows.")
@click.option("--seed", type=int, help="What a former split said; without it the best of a hundred is found.")
@chat_option
def split_command(
    files: tuple[Path, ...], out: Path, validation: float, test: float, seed: int | None, chat: bool
) -> None:
    """Split the rows of each FILE into train.jsonl, validation.jsonl and test.jsonl.

    Whole families are drawn, near-copies with them, and each label keeps its share as nearly as families
    allow. With the same seed rows of new families, put at the end, move no old one.
    """
    from smolcls.data.rows import write_rows
    from smolcls.data.split import split

    result = split(_read(files), validation=validation, test=test, seed=seed)
    for part, rows in result.parts.items():
        write_rows(out / f"{part}.jsonl", rows, chat=chat)
        click.echo(f"{out / f'{part}.jsonl'}  {len(rows)} rows  {_labels(row.label for row in rows)}")
    click.echo(f"the same split again: --seed {result.seed}")


@command.command("vary")
@click.argument("patterns", metavar="FILE", type=_FILE)
@click.option("--out", type=_FILE, required=True, help="The JSONL file to write.")
@click.option("--per-text", type=int, default=20, show_default=True, help="The most fillings of one text.")
@click.option("--seed", type=int, default=7, show_default=True, help="Another seed draws other fillings.")
@chat_option
def vary_command(patterns: Path, out: Path, per_text: int, seed: int, chat: bool) -> None:
    """Fill the slots of the texts in a TOML FILE, each text's fillings as one family.

    \b
    [slots]
    file = ["src/auth.ts", "main.py"]
    [[text]]
    text = "fix the bug in {file}"
    label = "workflow"
    """
    from smolcls.data.rows import write_rows
    from smolcls.data.vary import read_patterns, vary

    rows = vary(read_patterns(patterns), per_text=per_text, seed=seed)
    write_rows(out, rows, chat=chat)
    click.echo(f"{out}  {len(rows)} rows  {_labels(row.label for row in rows)}")


def _writing_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Settings`; it gets them as one argument, and the task as another."""

    @task_option
    @click.option("--seed", type=int, default=7, show_default=True, help="Another seed writes other rows.")
    @click.option("--style", "styles", multiple=True, metavar="WORDS", help="Ask for this style; may be repeated.")
    @click.option("--examples", type=_FILE, multiple=True, help="Rows to show to the model, and not to repeat.")
    @click.option("--avoid", type=_FILE, multiple=True, help="Rows not to repeat and not to show, as a test set's.")
    @click.option("--agree", metavar="SPEC", help="A backend that has to give a text the same label.")
    @functools.wraps(function)
    def with_settings(
        *,
        task_name: str | None,
        seed: int,
        styles: tuple[str, ...],
        examples: tuple[Path, ...],
        avoid: tuple[Path, ...],
        agree: str | None,
        **others: object,
    ) -> None:
        from smolcls import registry
        from smolcls.data.write import STYLES, Settings

        task = as_task(load_task(task_name))
        settings = Settings(
            seed=seed,
            styles=styles or STYLES,
            examples=_read(examples),
            avoid=[row.text for row in _read(avoid)],
            agree=None if agree is None else registry.load(agree, task=task),
        )
        function(task=task, settings=settings, **others)

    return with_settings


@command.command("write")
@click.option(
    "--model", required=True, metavar="SPEC", help="ollama:NAME, llamacpp:FILE or transformers:FOLDER|HUB_ID."
)
@click.option("--count", type=int, required=True, help="Rows that the file shall hold, evenly over the labels.")
@click.option("--out", type=_FILE, required=True, help="The JSONL file to begin or to go on with.")
@_writing_options
def write_command(model: str, count: int, out: Path, task: Task, settings: Settings) -> None:
    """Let a model write rows, asked with the task's own definitions, label by label in varied styles.

    Texts that are too long, repeat the question or resemble one that is there are left out. A run that was
    stopped goes on where it was: give the same command again. The exit code is 1 where a label was given up.
    """
    from smolcls.data.generate import open_generator
    from smolcls.data.write import write

    with contextlib.closing(open_generator(model)) as generator, StepBars() as bars:
        written = write(
            task,
            generator,
            out,
            count,
            settings=settings,
            progress=lambda done, total: bars.update("writing", done, total),
        )
    left_out = ", ".join(f"{number} {reason}" for reason, number in written.rejected.items() if number > 0)
    rows = ", ".join(f"{label} {number}" for label, number in written.rows.items())
    click.echo(f"{out}  {sum(written.rows.values())} rows  {rows}")
    click.echo(f"asked {written.calls} times; left out: {left_out or 'nothing'}", err=True)
    if written.given_up:
        click.echo(
            f"smolcls: gave up {', '.join(written.given_up)}: {settings.patience} answers in a row brought nothing "
            "new. Give --examples, other --style words or a larger model.",
            err=True,
        )
        raise click.exceptions.Exit(1)


def _read(paths: Iterable[Path]) -> list[Row]:
    from smolcls.data.rows import read_rows

    return [row for path in paths for row in read_rows(path)]


def _labels(labels: Iterable[str]) -> str:
    return ", ".join(f"{label} {number}" for label, number in sorted(Counter(labels).items()))


def _show(report: Report) -> None:
    for part, counts in report.rows.items():
        shown = ", ".join(f"{printable(label)} {number}" for label, number in counts.items())
        click.echo(f"{part}  {sum(counts.values())} rows  {shown}")
    for word, findings in (("problem", report.problems), ("note", report.notes)):
        kinds: dict[str, list[Finding]] = {}
        for finding in findings:
            kinds.setdefault(finding.kind, []).append(finding)
        for kind, some in kinds.items():
            click.echo(f"{word}: {kind} ({len(some)})")
            for finding in some[:_SHOWN]:
                click.echo(f"    {printable(finding.message)}")
            if len(some) > _SHOWN:
                click.echo(f"    … and {len(some) - _SHOWN} more; --json shows all")
    click.echo(f"{_number(report.problems, 'problem')}, {_number(report.notes, 'note')}")


def _number(items: Sized, noun: str) -> str:
    count = len(items)
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"
