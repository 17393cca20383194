"""The rules file: its text to compiled rules, and measured counts back into its text.

This module knows TOML and regular expressions, and neither texts nor probabilities; `rules.py` shows
what a file looks like.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from smolcls.errors import ConfigError
from smolcls.files import parse_toml
from smolcls.task import Task, check_keys

Find = Callable[[str], re.Match[str] | None]

_PLACES: dict[str, Callable[[re.Pattern[str]], Find]] = {
    "anywhere": lambda pattern: pattern.search,
    "start": lambda pattern: pattern.match,
    "whole": lambda pattern: pattern.fullmatch,
}
_KEYS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "label": str,
    "at": str,
    "pattern": str,
    "unless": str,
    "needs": str,
    "case": bool,
    "why": str,
    "counts": dict,
}
# Quantifiers hold digits, so a lower-case name in braces can only be a fragment.
_FRAGMENT = re.compile(r"(?<!\\)\{([a-z][a-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, compiled.

    The three tests are bound methods of compiled patterns, for they run some forty times a text.

    Attributes:
        name: its name, shown as `Prediction.rule`.
        label: the label it stands for.
        why: the reason, in one line.
        needs: a cheap test that has to succeed first, or None.
        find: the test for its pattern, wherever that has to match.
        unless: where this one succeeds, the rule does not decide; or None.
        case: whether it reads the text as typed, and not in lower case.
        counts: held-out rows that it decided, one number a label in the task's order; all 0 where unmeasured.
    """

    name: str
    label: str
    why: str
    needs: Find | None
    find: Find
    unless: Find | None
    case: bool
    counts: tuple[int, ...]


def read_rules(text: str, task: Task, *, where: str = "rules") -> tuple[Rule, ...]:
    """The rules in the text of a TOML file, in order; the last one decides every text.

    Args:
        text: the file's content.
        task: the task whose labels the rules use.
        where: the file's name, for messages.

    Raises:
        ConfigError: naming the file, the rule, and what is wrong with it.
    """
    content = _parse(text, where)
    check_keys(content, {"words": dict, "rule": list}, where=where)
    tables = _tables(content, where)
    words = _words(content.get("words", {}), where)
    names: set[str] = set()
    for position, table in enumerate(tables, start=1):
        if table["name"] in names:
            raise ConfigError(f"{where} has two rules named {table['name']!r}; names must differ.")
        names.add(table["name"])
        last = position == len(tables)
        condition = next((key for key in ("pattern", "unless", "needs", "at") if key in table), None)
        if last and condition is not None:
            raise ConfigError(
                f"{where}: the last rule decides what is left, so it has no condition; {table['name']!r} has "
                f'`{condition}`. Add a last rule without one, such as: name = "otherwise"'
            )
        if not last and "pattern" not in table:
            raise ConfigError(
                f"{where}: rule {table['name']!r} has no pattern, so the rules below it can never decide. "
                "Give it a pattern, or move it to the end."
            )
    return tuple(_rule(table, task, words, f"{where}, rule {table['name']!r}") for table in tables)


def with_counts(text: str, counts: Mapping[str, Mapping[str, int]], *, where: str = "rules") -> str:
    """The text of a rules file with new counts; all else in it, comments too, stays as it is.

    A rule that decided no row loses its counts, and one that is not in `counts` keeps them.

    Args:
        text: the file's content.
        counts: rule names to labels to counts, as `RulesClassifier.measure` gives them.
        where: the file's name, for messages.

    Raises:
        ConfigError: a rule that the file does not have, one that the counts speak against, or a file
            laid out so that it cannot be edited by lines.
    """
    wanted = _parse(text, where)
    tables = _tables(wanted, where)
    strangers = sorted(set(counts) - {table["name"] for table in tables})
    if strangers:
        raise ConfigError(f"{where} has no rule {', '.join(map(repr, strangers))} to write counts for.")
    for table in tables:
        if table["name"] in counts:
            found = {label: number for label, number in counts[table["name"]].items() if number > 0}
            _check_majority(table.get("label", ""), found, f"{where}, rule {table['name']!r}")
            table.pop("counts", None)
            table.update({"counts": found} if found else {})
    edited = _edit(text, tables)
    # Lines are edited without a TOML writer, to keep comments; this makes sure that nothing else changed.
    if _parse(edited, where) != wanted:
        raise ConfigError(
            f"{where} cannot be given counts: write each rule below its own [[rule]] line, with `counts` on one line."
        )
    return edited


def _edit(text: str, tables: list[dict[str, Any]]) -> str:
    """Put each rule's counts below its last key; comments and blank lines behind it belong to the next rule."""
    before, *pieces = re.split(r"(?m)^(?=\[\[rule\]\])", text)
    edited = [before]
    for table, piece in zip(tables, pieces, strict=False):
        lines = [line for line in piece.splitlines() if not re.match(r"counts[ \t]*=", line)]
        last = max(i for i, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#"))
        fields = ", ".join(f"{_key(label)} = {number}" for label, number in table.get("counts", {}).items())
        if fields:
            lines.insert(last + 1, f"counts = {{ {fields} }}")
        edited.append("\n".join(lines) + "\n")
    return "".join(edited)


def _key(label: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_-]+", label):
        return label
    return '"' + label.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{where} is not TOML: {error}.") from error


def _tables(content: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    tables = content.get("rule")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{where} must hold rules, each as a table [[rule]]; found {tables!r}.")
    for position, table in enumerate(tables, start=1):
        check_keys(table, _KEYS, where=f"{where}, rule {table.get('name') or position!r}")
        if not table.get("name", "").strip():
            raise ConfigError(f"{where}, rule {position} has no name; each rule needs name, label, pattern and why.")
    return tables


def _rule(table: dict[str, Any], task: Task, words: Mapping[str, str], where: str) -> Rule:
    for key in ("label", "why"):
        if not table.get(key, "").strip():
            raise ConfigError(f"{where} has no {key}; each rule needs name, label, pattern and why.")
    if table["label"] not in task.names:
        raise ConfigError(f"{where}: expected one of the labels {', '.join(task.names)}; found {table['label']!r}.")
    at, case = table.get("at", "anywhere"), table.get("case", False)
    if at not in _PLACES:
        raise ConfigError(f"{where}: at must be one of {', '.join(_PLACES)}; found {at!r}.")
    pattern = _compile(table.get("pattern", ""), words, case=case, where=f"{where}, pattern")
    unless = _compile(table["unless"], words, case=case, where=f"{where}, unless") if "unless" in table else None
    needs = re.compile(f"[{re.escape(table['needs'])}]") if table.get("needs") else None
    return Rule(
        name=table["name"],
        label=table["label"],
        why=table["why"],
        needs=None if needs is None else needs.search,
        find=_PLACES[at](pattern),
        unless=None if unless is None else unless.search,
        case=case,
        counts=_counts(table, task, where),
    )


def _counts(table: dict[str, Any], task: Task, where: str) -> tuple[int, ...]:
    found: dict[str, Any] = table.get("counts", {})
    for label, number in found.items():
        if label not in task.names:
            raise ConfigError(f"{where}: counts has the unknown label {label!r}; known are {', '.join(task.names)}.")
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ConfigError(f"{where}: counts must be whole numbers from 0 on; found {label} = {number!r}.")
    _check_majority(table["label"], found, where)
    return tuple(found.get(label, 0) for label in task.names)


def _check_majority(label: str, counts: Mapping[str, int], where: str) -> None:
    """A rule answers with the label that its counts favour; that must be the one it is written for."""
    own = counts.get(label, 0)
    for rival, number in counts.items():
        if rival != label and number >= max(own, 1):
            raise ConfigError(
                f"{where} says {label!r}, but of the rows it decided {number} were {rival!r} and {own} {label!r}. "
                "Narrow its pattern, or change its label."
            )


def _words(found: Mapping[str, Any], where: str) -> dict[str, str]:
    """The fragments, each as a group; one may use those above it."""
    words: dict[str, str] = {}
    for name, alternatives in found.items():
        if not isinstance(alternatives, str) or not _FRAGMENT.fullmatch(f"{{{name}}}"):
            raise ConfigError(
                f"{where}: [words] must hold lower-case names and regular expressions as text; "
                f"found {name} = {alternatives!r}."
            )
        place = f"{where}, words, {name}"
        _compile(alternatives, words, case=False, where=place)
        words[name] = f"(?:{_fill(alternatives, words, place)})"
    return words


def _fill(pattern: str, words: Mapping[str, str], where: str) -> str:
    def fragment(match: re.Match[str]) -> str:
        if match[1] not in words:
            known = ", ".join(words) or "none"
            raise ConfigError(f"{where} uses {match[0]}, which is not above it in [words]; there are: {known}.")
        return words[match[1]]

    return _FRAGMENT.sub(fragment, pattern)


def _compile(pattern: str, words: Mapping[str, str], *, case: bool, where: str) -> re.Pattern[str]:
    filled = _fill(pattern, words, where)
    # The text is lower-cased once, so a pattern without capitals needs no IGNORECASE, which would halve its speed.
    capitals = re.sub(r"\\.", "", filled, flags=re.DOTALL)
    flags = re.VERBOSE | re.DOTALL
    if not case and capitals != capitals.lower():
        flags |= re.IGNORECASE
    try:
        return re.compile(filled, flags)
    except (re.error, OverflowError) as error:
        raise ConfigError(f"{where} is not a regular expression: {error}. It is: {pattern.strip()}") from error
