"""Rows from patterns: texts with slots, filled from lists.

    [slots]
    language = ["Python", "Rust", "Haskell"]
    file = ["src/auth.ts", "main.py"]

    [[text]]
    text = "write a quicksort in {language}"
    label = "prompt"

    [[text]]
    text = "fix the bug in {file}"          # {{ and }} stand for braces
    label = "workflow"
    family = "fix-in-file"                   # optional; every filling of a text is of one family

A model that learns from fillings alone learns the patterns; they are a supplement to written rows.
"""

from __future__ import annotations

import hashlib
import math
import random
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolcls.data import near
from smolcls.data.rows import Row
from smolcls.errors import ConfigError
from smolcls.files import parse_toml
from smolcls.task import check_count, check_keys

PER_TEXT = 20
_MOST_FILLINGS = 2**62  # what `random.sample` can draw from


@dataclass(frozen=True, slots=True)
class Pattern:
    """A text with slots, in parts: what stands before a slot and the slot's values, in order of the text.

    Attributes:
        text: the text with its slots, as it was written.
        label, family: those of every filling.
        pieces: pairs of the words before a slot and the slot's name; a last one may have no slot.
        values: each slot's values, in the order of its first place.
    """

    text: str
    label: str
    family: str
    pieces: tuple[tuple[str, str | None], ...]
    values: Mapping[str, tuple[str, ...]]

    @property
    def count(self) -> int:
        """The number of different fillings; a slot that comes twice has one value."""
        return math.prod(len(values) for values in self.values.values())

    def fill(self, number: int) -> str:
        """The filling of a number below `count`."""
        chosen = {}
        for name, values in self.values.items():
            number, index = divmod(number, len(values))
            chosen[name] = values[index]
        return "".join(words + ("" if name is None else chosen[name]) for words, name in self.pieces)


def vary(patterns: Sequence[Pattern], *, per_text: int = PER_TEXT, seed: int = 7) -> list[Row]:
    """Fill each pattern up to `per_text` times, drawn without repetition; texts that come twice are left out.

    A pattern's draw depends on its text and the seed alone: other patterns do not change it.

    Raises:
        ConfigError: `per_text` is no positive whole number.
    """
    check_count(per_text, "per_text", least=1)
    rows, seen = [], set()
    for pattern in patterns:
        draw = random.Random(f"{seed} {pattern.text}")
        numbers = draw.sample(range(min(pattern.count, _MOST_FILLINGS)), min(per_text, pattern.count))
        for text in map(pattern.fill, numbers):
            key = near.normalise(text)
            if key not in seen:
                seen.add(key)
                rows.append(Row(text, pattern.label, pattern.family, origin="variation"))
    return rows


def read_patterns(path: str | Path) -> list[Pattern]:
    """The patterns of a TOML file.

    Raises:
        ConfigError: the file is missing or wrong; the message says where.
    """
    try:
        content = parse_toml(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}. Expected [slots] and [[text]] tables.") from error
    check_keys(content, {"slots": dict, "text": list}, where=str(path))
    slots = {name: _values(name, values, str(path)) for name, values in content.get("slots", {}).items()}
    tables = content.get("text", [])
    if not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path} must hold [[text]] tables, each with a text and a label; found {tables!r:.80}.")
    return [_pattern(table, slots, f"{path}, text {number}") for number, table in enumerate(tables, start=1)]


def _pattern(table: Mapping[str, Any], slots: Mapping[str, tuple[str, ...]], where: str) -> Pattern:
    check_keys(table, {"text": str, "label": str, "family": str}, where=where)
    for key in ("text", "label"):
        if not table.get(key, "").strip():
            raise ConfigError(f"{where}: expected a {key} that is not blank; found {table.get(key)!r}.")
    text = table["text"]
    pieces = tuple(_pieces(text, where))
    used = dict.fromkeys(name for _, name in pieces if name is not None)
    for name in used:
        if name not in slots:
            raise ConfigError(
                f"{where}: no slot {name!r} in [slots]; there are {', '.join(slots) or 'none'}. "
                "A brace that is meant as such is written twice."
            )
    family = table.get("family") or f"vary-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    return Pattern(text, table["label"], family, pieces, {name: slots[name] for name in used})


def _pieces(text: str, where: str) -> Iterator[tuple[str, str | None]]:
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ConfigError(f"{where}: expected slots such as {{file}}; found {text!r} ({error}).") from error
    for words, name, form, conversion in parts:
        if name == "" or form or conversion:
            raise ConfigError(f"{where}: expected slots such as {{file}}, a name and nothing else; found {text!r}.")
        yield words, name


def _values(name: str, values: object, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise ConfigError(
            f"{where}: the slot {name!r} must be a list of texts that is not empty; found {values!r:.80}."
        )
    return tuple(dict.fromkeys(values))
