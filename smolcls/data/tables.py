"""Labelled tables for measuring: JSONL, CSV and Parquet, with every further column kept.

A table is judged by its form alone: each row needs a text and a label, in columns that the caller names.
What is in the other columns is for slices and filters, and for nothing else.
"""

from __future__ import annotations

import contextlib
import csv
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smolcls.data.rows import Row, scan_rows
from smolcls.errors import InputError, require

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_SHOWN = 20  # values or columns that a message names


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One labelled text with what else its table says of it.

    Attributes:
        text: what is to be classified.
        label: the name of its label.
        columns: the table's other columns, by their names.
    """

    text: str
    label: str
    columns: Mapping[str, object] = field(default_factory=dict)


def read_table(
    path: str | Path,
    *,
    text: str = "text",
    label: str = "label",
    where: Mapping[str, str] | None = None,
    labelled: bool = True,
) -> list[LabelledText]:
    """The rows of a table: `.csv`, `.tsv` or `.parquet` through the package `datasets`, all else as JSONL.

    A JSONL file may hold chats (`{"messages": [...]}`); their texts and labels are read as `read_rows` does.

    Args:
        text: the column of the texts.
        label: the column of the labels; whole numbers are taken as their digits.
        where: columns and the value each must have, compared as text; the other rows are left out.
        labelled: whether there must be labels. Else, where no row has one, each gets "" as its label.

    Raises:
        InputError: the file cannot be read, lacks a column, holds a blank text or label, or has no row left.
        MissingExtraError: a CSV or Parquet file, and `datasets` is not installed.
    """
    path, where = Path(path), where or {}
    suffix = path.suffix.lower()
    if suffix in _SEPARATORS:
        records = _numbered(path, _csv(path, _SEPARATORS[suffix]))
    elif suffix == ".parquet":
        records = _numbered(path, _parquet(path))
    else:
        records = _jsonl(path, text)
    found = list(records)
    bare = not labelled and not any(label in record or chat is not None for _, record, chat in found)
    read = []
    for place, record, chat in found:
        row = _row(place, record, text, None if bare else label) if chat is None else _of_chat(record, chat)
        # By the caller's names too: in a chat the text and the label have no column of their own.
        read.append((row, {**record, text: row.text, label: row.label}))
    if not read:
        raise InputError(f'{path} holds no rows. Expected rows with the columns "{text}" and "{label}".')
    _check_where(path, [values for _, values in read], where)
    return [row for row, values in read if all(str(values.get(name)) == value for name, value in where.items())]


def label_indices(names: Sequence[str], rows: Sequence[LabelledText]) -> list[int]:
    """Index of each row's label.

    Raises:
        InputError: naming the first row whose label is not among `names`.
    """
    places = {name: index for index, name in enumerate(names)}
    for row in rows:
        if row.label not in places:
            raise InputError(
                f"Expected the labels {_some(names)}; found {row.label!r} at the text {row.text[:60]!r}. "
                "Name the task that these rows belong to (--task), or leave such rows out (--where)."
            )
    return [places[row.label] for row in rows]


Record = tuple[str, Mapping[str, Any], Row | None]
"""A row's place in its file, what stands there, and the row of a chat."""


def _row(place: str, record: Mapping[str, Any], text: str, label: str | None) -> LabelledText:
    values = {"label": ""}
    for column, option in ((text, "text"), (label, "label")):
        if column is None:
            continue
        if column not in record:
            raise InputError(
                f"{place}: expected the column {column!r}; found {_some(list(record)) or 'none'}. "
                f"Name the column of the {option}s with --{option}, or {option}=… from Python."
            )
        value = record[column]
        if isinstance(value, int) and not isinstance(value, bool) and option == "label":
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{place}: expected a text that is not blank as {column!r}; found {value!r:.80}.")
        values[option] = value
    return LabelledText(columns={key: item for key, item in record.items() if key not in (text, label)}, **values)


def _of_chat(record: Mapping[str, Any], chat: Row) -> LabelledText:
    return LabelledText(chat.text, chat.label, {key: item for key, item in record.items() if key != "messages"})


def _check_where(path: Path, found: Sequence[Mapping[str, object]], where: Mapping[str, str]) -> None:
    """Raise `InputError` for a filter that leaves no row, with what there is instead."""
    for column in where:
        if not any(column in values for values in found):
            columns = dict.fromkeys(name for values in found for name in values)
            raise InputError(f"{path} has no column {column!r} to choose rows by; it has {_some(list(columns))}.")
    left = found
    for column, value in where.items():
        there = dict.fromkeys(str(values.get(column)) for values in left)
        left = [values for values in left if str(values.get(column)) == value]
        if not left:
            raise InputError(f"{path}: no row has {column}={value}; found the values {_some(list(there))}.")


def _some(items: Sequence[str]) -> str:
    more = f", … ({len(items)} in all)" if len(items) > _SHOWN else ""
    return ", ".join(item[:60] for item in items[:_SHOWN]) + more


def _jsonl(path: Path, text: str) -> Iterator[Record]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}. Expected a table of rows.") from error
    chats: dict[int, Row | InputError] = {}
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            shown = line.decode("utf-8", "replace").strip()[:80]
            raise InputError(f"{place}: expected a JSON object; found {shown} ({error}).") from error
        if not isinstance(found, dict):
            raise InputError(f"{place}: expected a JSON object; found {found!r:.80}.")
        if text in found or "messages" not in found:
            yield place, found, None
            continue
        # What frame the chats share shows only over the whole file, so that is read as one.
        chats = chats or dict(scan_rows(path))
        chat = chats[number]
        if isinstance(chat, InputError):
            raise chat
        yield place, found, chat


def _numbered(path: Path, records: Sequence[Mapping[str, Any]]) -> Iterator[Record]:
    for number, record in enumerate(records, start=1):
        yield f"{path}, row {number}", record, None


def _csv(path: Path, separator: str) -> Sequence[Mapping[str, Any]]:
    """Every value stays the text it is: guessed types would make a number of `007` and nothing of `null`."""
    with _reading(path), path.open(encoding="utf-8-sig", newline="") as stream:
        lines = csv.reader(stream, delimiter=separator)
        header = next(lines, [])
        empty = next(lines, None) is None
    if len(set(header)) != len(header):
        raise InputError(f"{path}: expected columns of different names; found {_some(header)}.")
    if empty:
        return []
    with _datasets(path) as (datasets, options):
        features = datasets.Features({name: datasets.Value("string") for name in header})
        return list(
            datasets.Dataset.from_csv(
                str(path), features=features, sep=separator, keep_default_na=False, na_filter=False, **options
            )
        )


def _parquet(path: Path) -> Sequence[Mapping[str, Any]]:
    with _datasets(path) as (datasets, options):
        table = datasets.Dataset.from_parquet(str(path), **options)
        names = {column: kind for column, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)}
        return [
            {key: names[key].int2str(value) if key in names and value is not None else value for key, value in row}
            for row in (record.items() for record in table)
        ]


@contextlib.contextmanager
def _datasets(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The package `datasets`, silent, and options by which it leaves nothing in its own cache."""
    datasets = require("datasets", extra="evaluate", purpose="Reading CSV and Parquet")
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory(prefix="smolcls-") as cache, _reading(path):
            try:
                yield datasets, {"cache_dir": cache, "keep_in_memory": True}
            except datasets.exceptions.DatasetsError as error:
                raise ValueError(str(error.__cause__ or error)) from error
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What the readers raise becomes an `InputError`; pyarrow's and pandas' errors are `ValueError`s too."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}. Expected a table of rows.") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table: {error}. Expected rows under named columns.") from error
