"""`smolcls classify`: texts from arguments, a file or standard input; answers as they come."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import IO

import click

from smolcls.classifier import Classifier
from smolcls.cli.lines import Line, read_lines
from smolcls.cli.options import Choice, classifier_options
from smolcls.cli.output import Answers
from smolcls.errors import BackendError, InputError, SmolclsError

_BATCH = 64
_STDIN = "-"


@click.command("classify")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "--file", "path", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="A file with one text or JSON object a line; - is standard input.",
)  # fmt: skip
@classifier_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--explain", is_flag=True, help="Say in words what each stage of the chain did (--json has it as trace).")
def command(texts: tuple[str, ...], path: Path | None, choice: Choice, as_json: bool, explain: bool) -> None:
    """Classify each TEXT, each line of a file, or each line of standard input (no TEXT, or -).

    Lines are UTF-8; blank ones are skipped. A line that is a JSON object must hold the key "text"; its
    other keys are kept in the answer, but for those that an answer has itself, such as "label".

    A line that cannot be answered is reported on standard error, or with --json as an object with the key
    "error" in its place; the others are answered all the same, and the exit code is 1.

    Each line of standard input is answered at once: another program can keep the command open and talk to
    it line by line. A file is read and answered 64 lines at a time.
    """
    if texts and path is not None:
        raise click.UsageError("Give texts as arguments or a --file, not both.")
    if texts == (_STDIN,):
        texts, path = (), Path(_STDIN)
    with choice.make() as classifier:
        answers = Answers(classifier.task.names, as_json=as_json, explain=explain)
        if texts:
            for text, prediction in zip(texts, classifier.classify_batch(texts), strict=True):
                answers.show({"text": text}, prediction)
        elif path is None or str(path) == _STDIN:
            _answer_stdin(sys.stdin.buffer, classifier, answers)
        else:
            _answer_file(path, classifier, answers)
    if answers.failed > 0:
        asked = answers.shown + answers.failed
        click.echo(f"smolcls: {answers.failed} of {asked} lines could not be answered.", err=True)
        raise click.exceptions.Exit(1)


def _answer_stdin(stream: IO[bytes], classifier: Classifier, answers: Answers) -> None:
    if stream.isatty():
        click.echo("Type a text and press return; end with Ctrl-D.", err=True)
    for line in read_lines(stream):
        try:
            _answer([line], classifier, answers)
        except SmolclsError as error:  # whoever keeps the command open may mend it meanwhile
            answers.report(line, error)


def _answer_file(path: Path, classifier: Classifier, answers: Answers) -> None:
    from tqdm import tqdm

    quiet = not sys.stderr.isatty() or sys.stdout.isatty()
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        lines = read_lines(stream)
        # A pipe has no size.
        with tqdm(total=size if size > 0 else None, unit="B", unit_scale=True, file=sys.stderr, disable=quiet) as bar:
            while batch := list(itertools.islice(lines, _BATCH)):
                _answer(batch, classifier, answers)
                bar.update(batch[-1].end - bar.n)
    if answers.shown + answers.failed == 0:
        raise InputError(f"{path} holds no text. Expected one text or JSON object a line.")


def _answer(batch: list[Line], classifier: Classifier, answers: Answers) -> None:
    """Answer or report each line of a batch, in order.

    Raises:
        SmolclsError: the classifier cannot be used at all, so that the next line would not fare better.
    """
    try:
        found = iter(classifier.classify_batch([line.row["text"] for line in batch if line.error is None]))
    except (BackendError, InputError) as error:
        if len(batch) == 1:
            answers.report(batch[0], error)
        else:  # one text must not cost the others their answer
            for line in batch:
                _answer([line], classifier, answers)
        return
    for line in batch:
        if line.error is None:
            answers.show(line.row, next(found))
        else:
            answers.report(line, line.error)
