"""`smolcls classify`: texts from arguments, a file or standard input; answers as they come."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import IO

import click

from smolcls import workers
from smolcls.classifier import Classifier
from smolcls.cli.job import Job, job_options, run_job
from smolcls.cli.options import Choice, classifier_options
from smolcls.cli.output import Answers
from smolcls.cli.progress import FileBar
from smolcls.errors import SmolclsError
from smolcls.lines import Line, batches, no_text, read_lines

_STDIN = "-"


@click.command("classify")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "--file", "path", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="A file with one text or JSON object a line; - is standard input.",
)  # fmt: skip
@job_options
@classifier_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--explain", is_flag=True, help="Say in words what each stage of the chain did (--json has it as trace).")
def command(
    texts: tuple[str, ...], path: Path | None, choice: Choice, job: Job, as_json: bool, explain: bool
) -> None:  # fmt: skip
    """Classify each TEXT, each line of a file, or each line of standard input (no TEXT, or -).

    Lines are UTF-8; blank ones are skipped. A line that is a JSON object must hold the key "text"; its
    other keys are kept in the answer, but for those that an answer has itself, such as "label".

    A line that cannot be answered is reported on standard error, or with --json as an object with the key
    "error" in its place; the others are answered all the same, and the exit code is 1. Where eight texts of
    a file in a row get no answer, the command ends: the backend is gone.

    Each line of standard input is answered at once: another program can keep the command open and talk to
    it line by line. A file is read and answered 64 lines at a time, in memory that does not grow with it.

    A large file is a job: --out writes its answers to a file, and after Ctrl-C, a kill or an error the same
    command with --resume goes on. FILE.job.json beside it says which input, task and chain it belongs to.

    \b
    smolcls classify --file big.jsonl --out answers.jsonl --resume
    """
    if texts and path is not None:
        raise click.UsageError("Give texts as arguments or a --file, not both.")
    if (not texts and path is None) or texts == (_STDIN,):
        texts, path = (), Path(_STDIN)
    file = None if path is None or str(path) == _STDIN else path
    job.check(file, explain=explain)
    if file is not None and job.out is not None:
        end = run_job(file, job.out, choice, job)
        _end(end.errors, end.rows)
        return
    with choice.make() as classifier:
        answers = Answers(classifier.task.names, as_json=as_json, explain=explain)
        if texts:
            for text, prediction in zip(texts, classifier.classify_batch(texts), strict=True):
                answers.show(Line(0, 0, {"text": text}), prediction)
        elif file is None:
            _answer_stdin(sys.stdin.buffer, classifier, answers)
        else:
            _answer_file(file, workers.Crew(classifier, choice.make, job.processes), answers)
    _end(answers.failed, answers.shown + answers.failed)


def _end(failed: int, asked: int) -> None:
    if failed > 0:
        click.echo(f"smolcls: {failed} of {asked} lines could not be answered.", err=True)
        raise click.exceptions.Exit(1)


def _answer_stdin(stream: IO[bytes], classifier: Classifier, answers: Answers) -> None:
    if stream.isatty():
        click.echo("Type a text and press return; end with Ctrl-D.", err=True)
    for line in read_lines(stream):
        try:
            ((_, outcome),) = workers.answer_lines(classifier, [line])
        except SmolclsError as error:  # whoever keeps the command open may mend it meanwhile
            outcome = error
        answers.show(line, outcome)


def _answer_file(path: Path, crew: workers.Crew, answers: Answers) -> None:
    quiet = not sys.stderr.isatty() or sys.stdout.isatty()
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(path.open("rb"))
        bar = stack.enter_context(FileBar(os.fstat(stream.fileno()).st_size, quiet=quiet))
        answered = stack.enter_context(contextlib.closing(crew.answer(batches(read_lines(stream)))))
        bar.update(0, 0)
        for pairs in answered:
            for line, outcome in pairs:
                answers.show(line, outcome)
            bar.update(pairs[-1][0].end, answers.shown + answers.failed)
    if answers.shown + answers.failed == 0:
        raise no_text(path)
