"""How answers are printed: for people, or as one JSON object a line for programs."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import click

from smolcls.errors import SmolclsError
from smolcls.lines import Line, answer_line, error_text
from smolcls.prediction import Prediction

_UNSURE = "(unsure)"
_SHOWN = 72  # characters of a text that people get to see


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

    def show(self, line: Line, outcome: Prediction | SmolclsError) -> None:
        """Print a line's answer, or why it has none."""
        if isinstance(outcome, Prediction):
            self.shown += 1
        else:
            self.failed += 1
        if self._as_json:
            click.echo(answer_line(line, outcome))
        elif isinstance(outcome, Prediction):
            self._show(line.row["text"], outcome)
        else:
            click.echo(f"smolcls: {printable(error_text(line, outcome))}", err=True)

    def _show(self, text: str, prediction: Prediction) -> None:
        label = _UNSURE if prediction.label is None else prediction.label
        shown = printable(text, _SHOWN)
        click.echo(f"{label:<{self._width}} {prediction.confidence:6.1%}  {prediction.backend:<12}  {shown}")
        if self._explain:
            click.echo("\n".join(explanation(prediction)))


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
