"""Lines in, answer lines out: which text a line holds or what is wrong with it, and its answer as JSON.

One line is one text or one JSON object, in UTF-8. Nothing is read ahead of the lines that are asked for,
so a file of any size passes through, and another program can talk line by line.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import IO, Any

from smolcls.errors import InputError, SmolclsError
from smolcls.prediction import Prediction

#: Bytes of the longest line. A text is scored by a thousand of them; the bound keeps one line from taking all memory.
LONGEST = 4 * 2**20
#: Keys that say something about the answer. A row's own would be taken for it, so they are not kept.
ANSWER_KEYS = frozenset({field.name for field in fields(Prediction)} | {"error"})

_BATCH = 64
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
# Line ends for JavaScript's and Python's line readers, though not for JSON.
_LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank.

    Attributes:
        number: counted from 1, blank lines included.
        end: bytes of the stream up to the end of this line.
        row: the text under `text`, with the further keys of a JSON object; of a bad line, what could be read.
        error: why the line holds no text to classify, or None.
    """

    number: int
    end: int
    row: dict[str, Any]
    error: InputError | None = None


def read_lines(stream: IO[bytes]) -> Iterator[Line]:
    """The lines that are not blank, good and bad, each as soon as it has come.

    Raises:
        InputError: the stream begins as UTF-16 does, so that every line would be bad.
    """
    end = 0
    for number, (raw, length) in enumerate(_raw_lines(stream), start=1):
        if number == 1 and raw.startswith(_UTF16):
            raise InputError("Expected UTF-8; found UTF-16. Convert it, for example with: iconv -f UTF-16 -t UTF-8")
        end += length
        try:
            text = _text(raw, length)
        except InputError as error:
            yield Line(number, end, {}, error)
            continue
        if text:
            row = _row(text)
            yield Line(number, end, row, _check(row, text))


def batches(lines: Iterator[Line]) -> Iterator[list[Line]]:
    """The lines 64 at a time, fewer at the end."""
    while batch := list(itertools.islice(lines, _BATCH)):
        yield batch


def no_text(name: object) -> InputError:
    """The error for a file without a line that is not blank."""
    return InputError(f"{name} holds no text. Expected one text or JSON object a line.")


def answer_line(line: Line, outcome: Prediction | SmolclsError) -> bytes:
    """The line's keys with its answer, or with why it has none under `error`, as one line of JSON without its end."""
    if isinstance(outcome, Prediction):
        answer = outcome.to_dict()
    else:
        answer = {"error": error_text(line, outcome)}
    kept = {key: value for key, value in line.row.items() if key not in ANSWER_KEYS}
    try:
        return json_line({**kept, **answer})
    except RecursionError:  # keys nested about as deeply as can be read cannot all be written again
        return json_line({**{key: value for key, value in kept.items() if isinstance(value, str)}, **answer})


def error_text(line: Line, error: SmolclsError) -> str:
    """Why a line has no answer, with its number."""
    return f"Line {line.number}: {error}"


def json_line(content: Mapping[str, Any]) -> bytes:
    """An object as one line of JSON in UTF-8, whatever the terminal's encoding and the strings in it."""
    text = json.dumps(content, ensure_ascii=False).translate(_LINE_ENDS)
    # Only half a surrogate pair cannot be encoded; its replacement is the escape that JSON has for it.
    return text.encode("utf-8", "backslashreplace")


def _raw_lines(stream: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Each line, or the beginning of one that is too long, with its true length."""
    while raw := stream.readline(LONGEST + 1):
        length, rest = len(raw), raw
        while len(rest) > LONGEST and not rest.endswith(b"\n"):
            rest = stream.readline(LONGEST + 1)
            length += len(rest)
        yield raw, length


def _text(raw: bytes, length: int) -> str:
    """The line as text without blanks around it."""
    if length > LONGEST:
        raise InputError(
            f"expected at most {LONGEST} bytes; found {length}. Shorten the text: only its head and tail are scored."
        )
    try:
        return raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(
            f"expected UTF-8; found the byte 0x{error.object[error.start]:02x}. "
            "Convert the text, for example with: iconv -f WINDOWS-1252 -t UTF-8"
        ) from None


def _row(text: str) -> dict[str, Any]:
    """The line's JSON object if it is one, else the line as text, which may well begin with a brace."""
    if text.startswith("{"):
        try:
            # NaN, which other writers have and JSON has not, would make the answer unreadable for most.
            row: dict[str, Any] = json.loads(text, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            pass
        else:
            return row
    return {"text": text}


def _check(row: dict[str, Any], text: str) -> InputError | None:
    found = row.get("text")
    if isinstance(found, str) and found.strip():
        return None
    shown = text if len(text) <= 80 else text[:79] + "…"
    return InputError(f'expected an object with a non-empty "text"; found {shown}')
