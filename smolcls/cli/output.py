"""How answers are printed: for people, or as one JSON object a line for programs."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import click

from smolcls.cli.lines import Line
from smolcls.errors import SmolclsError
from smolcls.prediction import Prediction

#: Keys that say something about the answer. A row's own would be taken for it, so they are not kept.
ANSWER_KEYS = frozenset({field.name for field in fields(Prediction)} | {"error"})

_UNSURE = "(unsure)"
_SHOWN = 72  # characters of a text that people get to see
# Line ends for JavaScript's and Python's line readers, though not for JSON.
_LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}


class Answers:
    """Prints answers and errors, and counts them.

    Args:
        labels: the labels' names, for the width of their column.
        as_json: one JSON object a line; errors then stand among the answers, else on standard error.
        explain: say in words what each stage did.
    """

    def __init__(self, labels: Sequence[str], *, as_json: bool = False, explain: bool = False) -> None:
        self.shown = self.failed = 0
        self._width = max(len(name) for name in (*labels, _UNSURE))
        self._as_json = as_json
        self._explain = explain

    def show(self, row: Mapping[str, Any], prediction: Prediction) -> None:
        """Print one row's answer."""
        self.shown += 1
        if self._as_json:
            _echo_json(row, prediction.to_dict())
            return
        label = _UNSURE if prediction.label is None else prediction.label
        text = printable(row["text"], _SHOWN)
        click.echo(f"{label:<{self._width}} {prediction.confidence:6.1%}  {prediction.backend:<12}  {text}")
        if self._explain:
            click.echo("\n".join(explanation(prediction)))

    def report(self, line: Line, error: SmolclsError) -> None:
        """Print why a line has no answer."""
        self.failed += 1
        message = f"Line {line.number}: {error}"
        if self._as_json:
            _echo_json(line.row, {"error": message})
        else:
            click.echo(f"smolcls: {printable(message)}", err=True)


def json_line(content: Mapping[str, Any]) -> bytes:
    """An object as one line of JSON in UTF-8, whatever the terminal's encoding and the strings in it."""
    text = json.dumps(content, ensure_ascii=False).translate(_LINE_ENDS)
    # Only half a surrogate pair cannot be encoded; its replacement is the escape that JSON has for it.
    return text.encode("utf-8", "backslashreplace")


def printable(text: str, longest: int | None = None) -> str:
    """A text on one line, without control characters, which a terminal would obey."""
    line = " ".join(text.split() if longest is None else text.lstrip()[: 8 * longest].split())
    line = "".join("�" if unicodedata.category(character) in {"Cc", "Cs"} else character for character in line)
    return line if longest is None or len(line) <= longest else line[: longest - 1] + "…"


def explanation(prediction: Prediction) -> list[str]:
    """What happened to a text, in lines of words."""
    lines = [
        f"    {step.stage}: {step.outcome}"
        + (f", said {step.label} at {step.confidence:.1%}" if step.confidence is not None else "")
        + f" ({printable(step.reason)}; {step.latency_ms:.1f} ms)"
        for step in prediction.trace
    ]
    spread = ", ".join(f"{name} {p:.1%}" for name, p in prediction.probabilities.items())
    lines.append(f"    probabilities: {spread}{'' if prediction.calibrated else ' (not calibrated)'}")
    if prediction.rule is not None:
        lines.append(f"    the rule that decided: {prediction.rule}")
    if prediction.truncated:
        lines.append("    the text was shortened: its head and tail were scored")
    return lines


def _echo_json(row: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    kept = {key: value for key, value in row.items() if key not in ANSWER_KEYS}
    try:
        line = json_line({**kept, **answer})
    except RecursionError:  # keys nested about as deeply as can be read cannot all be written again
        line = json_line({**{key: value for key, value in kept.items() if isinstance(value, str)}, **answer})
    click.echo(line)
