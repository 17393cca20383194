"""Labelled rows and the files that hold them: one JSON object a line, plain or as a chat.

    {"text": "/help", "label": "command", "family": "f1", "origin": "authored", "note": ""}
    {"messages": [{"role": "user", "content": "Classify this input: /help"},
                  {"role": "assistant", "content": "command"}]}

Only a row's form is judged here. What the labels, texts and families are worth is the concern of `check`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from smolcls.errors import ConfigError, InputError
from smolcls.files import write_text
from smolcls.task import SHIPPED_TASKS

SPLITS = ("train", "validation", "test")
CHAT_PREFIX = "Classify this input: "

# What fewer messages share may be chance: their texts may simply begin alike.
_MIN_MESSAGES = 5
# A frame ends with a colon or a line's end. What is shared beyond belongs to the texts, such as all of their slashes.
_FRAME = re.compile(r".*(?::[ \t]+|\n)", re.DOTALL)
_OPTIONAL = ("family", "origin", "note")


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled text.

    Attributes:
        text: what is to be classified.
        label: the name of its label.
        family: rows of one family resemble each other and stand on one side of every split; "" is a family of its own.
        origin: how the row came about, such as `authored`, `variation` or `llm`.
        note: why it is labelled so, for edge cases.
    """

    text: str
    label: str
    family: str = ""
    origin: str = ""
    note: str = ""

    def to_dict(self) -> dict[str, str]:
        """A JSON-ready dictionary, without what is empty."""
        row = {"text": self.text, "label": self.label}
        return row | {key: value for key in _OPTIONAL if (value := getattr(self, key))}


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a JSONL file, plain or chats; other keys than a row's are left out.

    The user messages of chats may share a prefix, such as `Classify this input: `. It is recognised over the
    whole file and removed, for the text alone is what is classified.

    Raises:
        InputError: the file cannot be read, or naming the first line that is no row.
    """
    rows = []
    for _, row in scan_rows(path):
        if isinstance(row, InputError):
            raise row
        rows.append(row)
    return rows


def scan_rows(path: str | Path) -> Iterator[tuple[int, Row | InputError]]:
    """Each line's number with its row, or with the error that it makes; blank lines are passed over.

    Raises:
        InputError: the file cannot be read.
    """
    objects = [(number, _object(line, f"{path}, line {number}")) for number, line in _lines(Path(path))]
    prefix = chat_prefix(asked for _, item in objects if (asked := _asked(item)) is not None)
    for number, item in objects:
        try:
            row = item if isinstance(item, InputError) else _row(item, prefix, f"{path}, line {number}")
        except InputError as error:
            row = error
        yield number, row


def write_rows(path: str | Path, rows: Iterable[Row], *, chat: bool = False) -> None:
    """Write rows as JSONL, whole or not at all.

    Args:
        chat: write messages and nothing else, as trainers of chat models read them; families are lost.
    """
    write_text(Path(path), "".join(to_line(row, chat=chat) for row in rows))


def to_line(row: Row, *, chat: bool = False) -> str:
    """A row as a line of a JSONL file, its end included."""
    line = json.dumps(to_chat(row) if chat else row.to_dict(), ensure_ascii=False)
    # Only half a surrogate pair cannot be encoded; its replacement is the escape that JSON has for it.
    return line.encode("utf-8", "backslashreplace").decode("utf-8") + "\n"


def to_chat(row: Row) -> dict[str, list[dict[str, str]]]:
    """A row as a chat of two messages."""
    return {
        "messages": [
            {"role": "user", "content": CHAT_PREFIX + row.text},
            {"role": "assistant", "content": row.label},
        ]
    }


def chat_prefix(messages: Iterable[str]) -> str:
    """The frame that user messages share, or "": it ends with a colon and a blank, or at a line's end."""
    distinct = sorted(set(messages))
    if not distinct:
        return ""
    # What the first and the last in order of the alphabet share, all between them share.
    first, last = distinct[0], distinct[-1]
    parting = (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    common = first[: next(parting, len(first))]
    if len(distinct) < _MIN_MESSAGES:
        return CHAT_PREFIX if common.startswith(CHAT_PREFIX) else ""
    found = _FRAME.match(common)
    return found.group() if found else ""


def shipped(task_name: str, split: str) -> list[Row]:
    """The rows that the package ships for a task: `train`, `validation` or `test`.

    Raises:
        ConfigError: there is no such task or split.
    """
    if task_name not in SHIPPED_TASKS or split not in SPLITS:
        raise ConfigError(
            f"Rows are shipped for the tasks {', '.join(SHIPPED_TASKS)} and the splits {', '.join(SPLITS)}; "
            f"found {task_name!r} and {split!r}."
        )
    return read_rows(str(files("smolcls") / "data" / task_name.replace("-", "_") / f"{split}.jsonl"))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}. Expected a JSONL file of rows.") from error
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _object(line: bytes, where: str) -> dict[str, Any] | InputError:
    try:
        found = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        shown = line.decode("utf-8", "replace").strip()[:80]
        return InputError(f'{where}: expected a JSON object with "text" and "label"; found {shown} ({error}).')
    if not isinstance(found, dict):
        return InputError(f'{where}: expected a JSON object with "text" and "label"; found {found!r:.80}.')
    return found


def _row(found: Mapping[str, Any], prefix: str, where: str) -> Row:
    if "text" not in found and "messages" in found:
        asked, answered = _turns(found["messages"], where)
        values = {**found, "text": asked.removeprefix(prefix), "label": answered}
    else:
        values = dict(found)
    for key in ("text", "label"):
        if not isinstance(values.get(key), str) or not values[key].strip():
            shown = repr(values[key])[:80] if key in values else f"the keys {', '.join(map(repr, values)) or 'none'}"
            raise InputError(f'{where}: expected a text that is not blank as "{key}"; found {shown}.')
    for key in _OPTIONAL:
        if not isinstance(values.setdefault(key, ""), str):
            raise InputError(f'{where}: expected a text as "{key}", or none; found {values[key]!r:.80}.')
    return Row(**{key: values[key] for key in ("text", "label", *_OPTIONAL)})


def _turns(messages: object, where: str) -> tuple[str, str]:
    """What the user and the assistant said, in a chat of one turn each; a system message may lead it."""
    turns = messages if isinstance(messages, list) else []
    said = [
        (turn.get("role"), turn.get("content"))
        for turn in turns
        if isinstance(turn, dict) and isinstance(turn.get("content"), str)
    ]
    if said and said[0][0] == "system":
        said = said[1:]
    if [role for role, _ in said] != ["user", "assistant"] or len(turns) > 3:
        raise InputError(
            f'{where}: expected "messages" of one user and one assistant, each with a "content", and at most a system '
            f"message before them; found {messages!r:.80}."
        )
    return str(said[0][1]), str(said[1][1]).strip()


def _asked(item: dict[str, Any] | InputError) -> str | None:
    """The user's message of a chat row that is whole, for the search for a prefix."""
    if isinstance(item, InputError) or "text" in item or "messages" not in item:
        return None
    try:
        return _turns(item["messages"], "")[0]
    except InputError:
        return None
