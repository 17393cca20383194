"""Rows written by a generating model: asked label by label in varied styles, each answer checked before it is kept.

The file only grows, by whole calls, and every draw depends on the seed and on the rows that are there: a run
that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smolcls.classifier import Classifier
from smolcls.data import near
from smolcls.data.generate import Generator
from smolcls.data.rows import Row, read_rows, to_line
from smolcls.errors import ConfigError
from smolcls.task import Task, check_count

STYLES = (
    "in a hurry: lower case, no punctuation, no greeting",
    "terse: two to five words",
    "polite, in one complete sentence",
    "two or three sentences, the background first",
    "rambling, with the point at the end",
    "with a typing mistake or two",
    "the way one talks to a colleague, in the middle of a conversation",
    "precise and technical, with names and numbers",
    "annoyed, it is not the first attempt",
    "by a beginner who lacks the right words",
    "by somebody whose first language is not English",
    "unusual: a case that the definition covers and few would think of",
)

_EXAMPLES_SHOWN = 4
_ITEM = re.compile(r"^\s*(?:\d{1,3}\s*[.):]|[-*•–])\s+(.+?)\s*$")
_QUOTES = ('""', "''", "``", "“”", "„“", "«»", "‘’")


@dataclass(frozen=True, slots=True)
class Settings:
    """How rows are written.

    Attributes:
        seed: another seed writes other rows.
        styles: each call asks for one of them.
        examples: rows that may be shown to the model, those of the label it is asked for; near-copies of them
            are dropped.
        avoid: texts that are not shown, and whose near-copies are dropped as well, such as a test set's.
        agree: a classifier that has to give a text the label it was written for, or None.
        per_call: texts asked for at once.
        max_tokens: length of an answer.
        patience: a label is given up after so many calls in a row without a new row.
    """

    seed: int = 7
    styles: Sequence[str] = STYLES
    examples: Sequence[Row] = ()
    avoid: Sequence[str] = ()
    agree: Classifier | None = None
    per_call: int = 8
    max_tokens: int = 600
    patience: int = 20


@dataclass(frozen=True, slots=True)
class Written:
    """What became of it.

    Attributes:
        rows: rows of each label that the file holds now.
        given_up: labels with fewer rows than were asked for.
        rejected: answers left out by this run, by reason: `too-long`, `echo`, `near-copy` or `disagreement`.
        calls: how often the model was asked.
    """

    rows: Mapping[str, int]
    given_up: tuple[str, ...]
    rejected: Mapping[str, int]
    calls: int


def write(
    task: Task,
    generator: Generator,
    path: str | Path,
    count: int,
    *,
    settings: Settings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Let a model write rows of a task into a JSONL file until it holds `count`, evenly over the labels.

    Args:
        path: a file to begin, or one to go on with.
        progress: called with (rows, count).

    Raises:
        ConfigError: the count or a setting is out of its range, or the file holds rows of another task.
        SmolclsError: the model could not answer; what it wrote before is kept.
    """
    work = _Work(task, generator, Path(path), settings or Settings())
    wanted = _targets(task, count)
    tell = progress or (lambda done, total: None)
    tell(min(work.rows.total(), count), count)
    while (label := work.next_label(wanted)) is not None:
        work.ask(label, wanted[label] - work.rows[label])
        tell(min(work.rows.total(), count), count)
    short = tuple(name for name in task.names if work.rows[name] < wanted[name])
    return Written({name: work.rows[name] for name in task.names}, short, dict(work.rejected), work.calls)


def ask(task: Task, label: str, style: str, examples: Sequence[Row], count: int) -> str:
    """The message that asks a model for texts of a label."""
    meaning = {item.name: item.description for item in task.labels}
    lines = ["Inputs are sorted into these labels:"]
    lines += [f"- {name}: {text}" if text else f"- {name}" for name, text in meaning.items()]
    lines += ["", f"Write {count} different inputs that get the label {label} and no other."]
    lines += [f"They are {style}."] if style else []
    lines += ["Such as:", *(f"- {' '.join(row.text.split())}" for row in examples)] if examples else []
    lines += [
        f"Vary subject and wording. Answer with a numbered list of {count} lines, one input a line, nothing else."
    ]
    return "\n".join(lines)


def parse(answer: str, count: int, max_tokens: int) -> list[str]:
    """The texts of an answer: a JSON list, the items of a list, or as many lines as were asked for; at most `count`.

    Other lines are talk. An answer that may have been cut off loses its last text.
    """
    texts = _json_list(answer)
    if texts is None:
        lines = [line.strip() for line in answer.splitlines() if line.strip()]
        texts = [match.group(1) for line in lines if (match := _ITEM.match(line))]
        if not texts and len(lines) == count:
            texts = lines
        # A token is seldom shorter than two characters: a shorter answer ended by itself.
        if len(texts) < count and len(answer) > 2 * max_tokens:
            texts = texts[:-1]
    return [text for item in texts[:count] if (text := _unquoted(item))]


@dataclass
class _Work:
    """A file that grows, and what is known of it."""

    task: Task
    generator: Generator
    path: Path
    settings: Settings
    rows: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    calls: int = 0

    def __post_init__(self) -> None:
        settings = self.settings
        for name in ("per_call", "max_tokens", "patience"):
            if getattr(settings, name) < 1:
                raise ConfigError(f"{name} must be at least 1; found {getattr(settings, name)!r}.")
        if not settings.styles:
            raise ConfigError("styles must name a style at least; found none.")
        there = _whole_rows(self.path)
        for row in there:
            if row.label not in self.task.names:
                raise ConfigError(
                    f"{self.path} holds a row of the label {row.label!r}; expected rows of the task "
                    f"{self.task.name!r} ({', '.join(self.task.names)}) or no file. Name another file."
                )
        self.rows.update(row.label for row in there)
        known = (*(row.text for row in (*settings.examples, *there)), *settings.avoid)
        self.index = near.NearIndex(known)

    def next_label(self, wanted: Mapping[str, int]) -> str | None:
        """The label that lacks most, of those that were not given up."""
        lacking = {
            name: wanted[name] - self.rows[name]
            for name in self.task.names
            if self.rows[name] < wanted[name] and self.failures[name] < self.settings.patience
        }
        return max(lacking, key=lacking.__getitem__) if lacking else None

    def ask(self, label: str, most: int) -> None:
        """Ask once for texts of a label, and append the good ones, at most `most`, in one write."""
        settings = self.settings
        name = f"{settings.seed} {label} {self.rows[label]} {self.failures[label]}"
        draw = random.Random(name)
        of_label = [row for row in settings.examples if row.label == label]
        examples = draw.sample(of_label, min(len(of_label), _EXAMPLES_SHOWN))
        prompt = ask(self.task, label, draw.choice(settings.styles), examples, settings.per_call)
        answer = self.generator.generate(prompt, draw.getrandbits(31), settings.max_tokens)
        self.calls += 1
        good = self._checked(parse(answer, settings.per_call, settings.max_tokens), label, prompt)[:most]
        if not good:
            self.failures[label] += 1
            return
        # One call's texts resemble each other.
        family = f"llm-{hashlib.sha256(f'{name} {prompt}'.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"
        _append(self.path, [Row(text, label, family, origin="llm") for text in good])
        for text in good:
            self.index.add(text)
        self.rows[label] += len(good)
        self.failures[label] = 0

    def _checked(self, texts: Sequence[str], label: str, prompt: str) -> list[str]:
        fresh = near.NearIndex()
        good = []
        shown = near.normalise(prompt)
        for text in texts:
            if len(text.encode("utf-8", "surrogatepass")) > self.task.max_text_bytes:
                self.rejected["too-long"] += 1
            elif near.normalise(text) in shown:
                self.rejected["echo"] += 1
            elif self.index.find(text) is not None or fresh.find(text) is not None:
                self.rejected["near-copy"] += 1
            else:
                fresh.add(text)
                good.append(text)
        if self.settings.agree is None or not good:
            return good
        agreed = [text for text, found in zip(good, self.settings.agree.predict(good), strict=True) if found == label]
        self.rejected["disagreement"] += len(good) - len(agreed)
        return agreed


def _targets(task: Task, count: int) -> dict[str, int]:
    check_count(count, "count", least=len(task.names), note=", a row for each label")
    each, rest = divmod(count, len(task.names))
    return {name: each + (position < rest) for position, name in enumerate(task.names)}


def _whole_rows(path: Path) -> list[Row]:
    """The rows of a file that is to grow; a last line that was cut off in the writing is removed."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return read_rows(path)


def _append(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as stream:
        stream.write("".join(to_line(row) for row in rows).encode())
        os.fsync(stream.fileno())


def _json_list(answer: str) -> list[str] | None:
    if not answer.lstrip().startswith("["):
        return None
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(item, str) for item in found) else None


def _unquoted(text: str) -> str:
    """The text without blanks, bold marks or a pair of quotes around it."""
    text = text.strip().removeprefix("**").removesuffix("**").strip()
    for pair in _QUOTES:
        if len(text) > 2 and text[0] == pair[0] and text[-1] == pair[1] and pair[0] not in text[1:-1]:
            return text[1:-1].strip()
    return text
