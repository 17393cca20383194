"""What is wrong with labelled rows: form, labels, copies, leaks between parts, balance, likely label errors.

Problems make the rows unfit for training or its measurements; notes are for a person to look at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smolcls.data import near, noise
from smolcls.data.rows import Row, scan_rows
from smolcls.data.split import own_family
from smolcls.errors import InputError
from smolcls.task import Task

#: A label with so many times the rows of another is learnt at the other's cost.
IMBALANCE = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found.

    Attributes:
        kind: `form`, `unknown-label`, `missing-label`, `contradiction`, `duplicate`, `family-leak`, `copy-leak`;
            as notes `near-copies`, `imbalance`, `long-texts`, `label-error`.
        message: the finding in words, places included.
        places: the rows concerned, as `part:line`.
    """

    kind: str
    message: str
    places: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found.

    Attributes:
        rows: number of rows of each label in each part.
        problems: what must be mended.
        notes: what is worth a look.
    """

    rows: Mapping[str, Mapping[str, int]]
    problems: tuple[Finding, ...]
    notes: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Item:
    part: str
    line: int
    row: Row

    def __str__(self) -> str:
        return f"{self.part}:{self.line}"


def check_files(paths: Iterable[str | Path], task: Task, *, label_errors: bool = False) -> Report:
    """Check JSONL files, each of them one part of a split; every line that is no row is a problem.

    Raises:
        InputError: a file cannot be read, or is named twice.
        MissingExtraError: scikit-learn is needed for label errors, and is not installed.
    """
    items: list[_Item] = []
    malformed: list[Finding] = []
    parts: list[str] = []
    for path in map(str, paths):
        if path in parts:
            raise InputError(f"{path} is given twice; every row of it would be a leak. Name each file once.")
        parts.append(path)
        for line, row in scan_rows(path):
            if isinstance(row, InputError):
                malformed.append(Finding("form", str(row), (f"{path}:{line}",)))
            else:
                items.append(_Item(path, line, row))
    return _check(parts, items, task, malformed=malformed, label_errors=label_errors)


def check(parts: Mapping[str, Sequence[Row]], task: Task, *, label_errors: bool = False) -> Report:
    """Check rows by the parts of a split that they are in.

    Args:
        label_errors: look for likely label errors too, by models that were not trained on the row in question.

    Raises:
        MissingExtraError: scikit-learn is needed for label errors, and is not installed.
    """
    items = [_Item(part, line, row) for part, rows in parts.items() for line, row in enumerate(rows, start=1)]
    return _check(list(parts), items, task, malformed=[], label_errors=label_errors)


def _check(
    parts: Sequence[str], items: Sequence[_Item], task: Task, *, malformed: list[Finding], label_errors: bool
) -> Report:
    counts = {part: dict.fromkeys(task.names, 0) for part in parts}
    for item in items:
        counts[item.part][item.row.label] = counts[item.part].get(item.row.label, 0) + 1
    leaks, near_copies = _near_copies(items)
    problems = [*malformed, *_labels(items, counts, task), *_copies(items), *_families(items), *leaks]
    notes = [*near_copies, *_balance(counts, task), *_long(items, task)]
    if label_errors:
        notes += _label_errors(items)
    return Report(counts, tuple(problems), tuple(notes))


def _labels(items: Iterable[_Item], counts: Mapping[str, Mapping[str, int]], task: Task) -> Iterator[Finding]:
    for item in items:
        if item.row.label not in task.names:
            yield Finding(
                "unknown-label",
                f"{item}: expected one of the labels {', '.join(task.names)}; found {item.row.label!r}.",
                (str(item),),
            )
    for part, found in counts.items():
        lacking = [name for name in task.names if found[name] == 0]
        if lacking:
            yield Finding("missing-label", f"{part}: no row has the label {' or '.join(lacking)}; each needs some.")


def _copies(items: Iterable[_Item]) -> Iterator[Finding]:
    """Texts that are the same but for case, blanks and the sentence's end."""
    groups: dict[str, list[_Item]] = defaultdict(list)
    for item in items:
        groups[near.normalise(item.row.text)].append(item)
    for group in groups.values():
        places = tuple(map(str, group))
        shown = f"{_list(places)}: {_short(group[0].row.text)}"
        labels = {item.row.label for item in group}
        if len(labels) > 1:
            yield Finding("contradiction", f"{shown} has the labels {', '.join(sorted(labels))}.", places)
        if len({item.part for item in group}) > 1:
            yield Finding("copy-leak", f"{shown} stands in several parts; keep it in one.", places)
        elif len(group) > 1:
            yield Finding("duplicate", f"{shown} stands there {len(group)} times; keep one.", places)


def _families(items: Iterable[_Item]) -> Iterator[Finding]:
    groups: dict[str, dict[str, list[_Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        if item.row.family:
            groups[item.row.family][item.part].append(item)
    for family, by_part in groups.items():
        if len(by_part) > 1:
            counted = ", ".join(f"{part} ({len(rows)})" for part, rows in by_part.items())
            places = tuple(str(item) for rows in by_part.values() for item in rows)
            yield Finding("family-leak", f"The family {family!r} has rows in {counted}; move it into one.", places)


def _near_copies(items: Sequence[_Item]) -> tuple[list[Finding], list[Finding]]:
    """Leaks between parts, and near-copies whose families would let them part at the next split.

    Two families that came together through others are not told again: mended one after the other, the links
    lead to an end.
    """
    leaks, apart = [], []
    number: dict[tuple[str, str], int] = {}
    groups = [number.setdefault((item.part, own_family(item.row)), len(number)) for item in items]
    for pair in near.links([item.row.text for item in items], groups, near.Joined(len(number))):
        one, other = items[pair.first], items[pair.second]
        if near.normalise(one.row.text) == near.normalise(other.row.text):
            continue  # told as copies already
        places = (str(one), str(other))
        shown = f"{_short(one.row.text)} and {_short(other.row.text)} share {pair.overlap:.0%} of their 4-grams"
        if one.part != other.part:
            leaks.append(Finding("copy-leak", f"{_list(places)}: {shown}; move one, with its family.", places))
        else:
            apart.append(Finding("near-copies", f"{_list(places)}: {shown}; give them one family.", places))
    return leaks, apart


def _balance(counts: Mapping[str, Mapping[str, int]], task: Task) -> Iterator[Finding]:
    for part, found in counts.items():
        known = {name: found[name] for name in task.names if found[name] > 0}
        if not known:
            continue
        most, least = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
        if known[most] > IMBALANCE * known[least]:
            yield Finding(
                "imbalance",
                f"{part}: {most} has {known[most]} rows, more than {IMBALANCE} times the {known[least]} of {least}.",
            )


def _long(items: Iterable[_Item], task: Task) -> Iterator[Finding]:
    places = tuple(
        str(item) for item in items if len(item.row.text.strip().encode("utf-8", "surrogatepass")) > task.max_text_bytes
    )
    if places:
        yield Finding(
            "long-texts",
            f"{_list(places)}: longer than the task's {task.max_text_bytes} bytes; their middle is not read.",
            places,
        )


def _label_errors(items: Sequence[_Item]) -> Iterator[Finding]:
    for suspect in noise.suspects([item.row for item in items]):
        item = items[suspect.position]
        yield Finding(
            "label-error",
            f"{item}: {_short(item.row.text)} is labelled {item.row.label} ({suspect.given:.0%}); models trained on "
            f"other rows say {suspect.label} ({suspect.probability:.0%}).",
            (str(item),),
        )


def _list(places: Sequence[str]) -> str:
    return ", ".join(places) if len(places) <= 3 else f"{', '.join(places[:3])} and {len(places) - 3} more"


def _short(text: str) -> str:
    words = " ".join(text.split())
    return repr(words if len(words) <= 60 else words[:59] + "…")
