"""Classifies a whole file into another, in memory that does not grow with it, and goes on where it was stopped.

    >>> classify_file("big.jsonl", "answers.jsonl", functools.partial(smolcls.load, "linear"), existing="resume")

One answer line stands for each line of the input that is not blank, in the same order, written 64 at a time. So the
number of whole lines says where to go on. Beside the answers lies NAME.job.json, which says what they belong to.
How a line is read and answered, and how answers are known again, is settled elsewhere.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

from smolcls.classifier import Classifier
from smolcls.errors import ConfigError, InputError
from smolcls.lines import Line, answer_line, batches, no_text, read_lines
from smolcls.owner import AGAIN, Owner
from smolcls.settings import default_router
from smolcls.task import check_count
from smolcls.workers import Crew

Existing = Literal["error", "resume", "force"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes:
        rows: answer lines in the file, those of an earlier run included.
        errors: how many of them say why there is no answer.
        read: bytes of the input that are answered.
        size: bytes of the input.
    """

    rows: int
    errors: int
    read: int
    size: int


def classify_file(
    source: str | Path,
    out: str | Path,
    make: Callable[[], Classifier] = default_router,
    *,
    processes: int = 1,
    existing: Existing = "error",
    progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Classify each line of a file, a text or a JSON object with "text", into a file of JSON lines.

    A line that cannot be answered has the key `error`; the others are answered all the same.

    Args:
        make: makes the classifier. With several processes it is called in each, so it must be a function of a module
            or a `functools.partial` of one, and a script that calls this does so under `if __name__ == "__main__"`.
        processes: more than one helps where a classifier uses one core: `rules`, `linear`. Models use all.
        existing: what to do where `out` is there: an error; go on behind its last whole line (or begin, where it is
            not there); replace it, once the first answers have come.
        progress: told at the start and after each 64 lines.

    Raises:
        ConfigError: another word for `existing`, fewer than one process, or a `make` that cannot be sent to several.
        InputError: a file cannot be used; `out` is there, or belongs to another input, task, classifier or model.
        SmolclsError: the classifier cannot be used at all, or a process died. What is written is whole.
    """
    source, out = Path(source), Path(out)
    check_count(processes, "processes", least=1)
    _check_files(source, out, existing)
    with make() as classifier, source.open("rb") as stream:
        owner = Owner(source, classifier)
        lines, size = read_lines(stream), source.stat().st_size
        going_on = existing == "resume" and out.exists() and out.stat().st_size > 0
        state = _resume(out, owner, lines, size) if going_on else Progress(0, 0, 0, size)
        tell = progress if progress is not None else _tell_nobody
        tell(state)
        answered = Crew(classifier, make, processes).answer(batches(lines))
        with closing(_Writer(out, None if going_on else owner)) as writer, closing(answered):
            for pairs in answered:
                writer.write(b"".join(answer_line(*pair) + b"\n" for pair in pairs))
                errors = sum(isinstance(outcome, Exception) for _, outcome in pairs)
                state = Progress(state.rows + len(pairs), state.errors + errors, pairs[-1][0].end, size)
                tell(state)
    if state.rows == 0:
        raise no_text(source)
    return state


def _tell_nobody(progress: Progress) -> None:
    pass


def _check_files(source: Path, out: Path, existing: Existing) -> None:
    if existing not in get_args(Existing):
        raise ConfigError(f"existing must be one of {', '.join(get_args(Existing))}; found {existing!r}.")
    if not source.is_file():
        raise InputError(f"A job needs a file, which can be read again to go on; {source} is missing or none.")
    if out.exists():
        if not out.is_file() or out.samefile(source):
            what = "the input itself" if out.is_file() else "no file"
            raise InputError(f"The answers need a file of their own; {out} is {what}. Give another --out.")
        if existing == "error":
            raise InputError(
                f"{out} is there already. Give --resume to go on behind its last answer, --force to replace it, or "
                "another --out."
            )


def _resume(out: Path, owner: Owner, lines: Iterator[Line], size: int) -> Progress:
    """Cut a half-written last answer off, and read the input up to the line that comes next.

    Raises:
        InputError: the answers do not belong to the input, task, classifier and models.
    """
    owner.check(out)
    rows, errors, last = _count(out)
    done, reached = 0, None
    for reached in itertools.islice(lines, rows):  # noqa: B007 - the last one is wanted
        done += 1
    if done < rows:
        raise InputError(f"{out} holds {rows} answers, but the input only {done} lines. {AGAIN}")
    if reached is None:
        return Progress(0, 0, 0, size)
    if _read(out, rows, last).get("text") != reached.row.get("text"):
        raise InputError(
            f"Line {rows} of {out} answers another text than line {reached.number} of the input: answers were added, "
            f"removed or moved. {AGAIN}"
        )
    return Progress(rows, errors, reached.end, size)


def _count(out: Path) -> tuple[int, int, bytes]:
    """The whole answers, how many of them are errors, and the last one; what is behind it is cut off."""
    rows = errors = 0
    last = b""
    try:
        with out.open("rb+") as stream:
            for answer in stream:
                if not answer.endswith(b"\n"):
                    stream.truncate(stream.seek(-len(answer), 2))
                    break
                rows, last = rows + 1, answer
                # Most answers are none, and reading each as JSON would take longer than the rest.
                errors += b'"error": ' in answer and "error" in _read(out, rows, answer)
    except OSError as error:
        raise InputError(f"{out} cannot be gone on with: {error}.") from error
    return rows, errors, last


def _read(out: Path, number: int, answer: bytes) -> dict[str, Any]:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"Line {number} of {out} is no answer of smolcls. {AGAIN}")
    return found


class _Writer:
    """The file of answers, opened when there are any: a model that does not load must not cost the old ones.

    Args:
        owner: what a new file belongs to; None goes on with the one that is there.
    """

    def __init__(self, out: Path, owner: Owner | None) -> None:
        self._out = out
        self._owner = owner
        self._stream: IO[bytes] | None = None
        self._end = 0

    def write(self, content: bytes) -> None:
        """Write whole lines.

        Raises:
            InputError: they cannot be written, or somebody else writes to the file.
        """
        try:
            if self._stream is None:
                self._stream = self._open()
                self._end = self._stream.seek(0, 2)
            if self._out.stat().st_size != self._end:
                raise InputError(f"Another process writes to {self._out}. End it, then go on with --resume.")
            rest = memoryview(content)
            while rest:
                rest = rest[self._stream.write(rest) :]
            self._end += len(content)
        except OSError as error:
            raise InputError(f"The answers cannot be written: {error}. Mend that, then go on with --resume.") from error

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()

    def _open(self) -> IO[bytes]:
        if self._owner is None:
            return self._out.open("ab", buffering=0)  # unbuffered: a kill leaves what was written
        self._out.parent.mkdir(parents=True, exist_ok=True)
        stream = self._out.open("wb", buffering=0)
        self._owner.write(self._out)  # later: old answers are gone now
        return stream
