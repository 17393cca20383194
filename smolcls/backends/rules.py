"""Rules with measured confidences: regular expressions from a TOML file, the first match decides.

The mechanism knows no task; a rules file does. Each rule names its label and carries the counts it
showed on held-out rows, so that its confidence is a frequency and not a guess:

    [words]                            # optional: named alternations, used as {thing}
    thing = 'invoice | bill'

    [[rule]]
    name = "asks-for-money"
    label = "billing"
    pattern = '\\b {thing} s? \\b'       # verbose regular expression: blanks in it mean nothing, . is any character
    at = "anywhere"                    # optional; or "start", or "whole": the pattern has to match the whole text
    unless = '\\b paid \\b'              # optional: the rule is skipped where this is found, anywhere
    needs = "bi"                       # optional: a cheap test first, the text must hold one of these characters
    case = false                       # optional: true tells upper from lower case
    why = "A bill is the business of the billing desk."
    counts = { billing = 41, sales = 2 }    # optional: the labels of the held-out rows that it decided

    [[rule]]                           # the last one decides what is left; it has no pattern
    name = "otherwise"
    label = "sales"
    why = "Most mail is for sales."

`RulesClassifier.measure` counts on labelled rows, `with_counts` writes the counts into the file's text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from smolcls import prompt
from smolcls.backends._rules_file import Rule, read_rules, with_counts
from smolcls.calibration import Calibration, model_fingerprint
from smolcls.classifier import Classifier, Scores
from smolcls.errors import ConfigError, InputError
from smolcls.task import Task, as_task

__all__ = ["Rule", "RulesClassifier", "read_rules", "with_counts"]

# A request stands at the start or, below something pasted, at the end; the bound keeps any text cheap.
HEAD_CHARACTERS = 2000
TAIL_CHARACTERS = 500


class RulesClassifier(Classifier):
    """Regular expressions with measured confidences.

    Args:
        rules: path of a rules file; None takes the task's own.
        task: the task, its name or file; None is the shipped three-type task.
        calibration: a temperature fitted on this backend; seldom needed, for the counts are measured already.
        min_confidence: below this confidence the label is None.

    Raises:
        ConfigError: there is no rules file, it is wrong, or the calibration belongs to another backend.
    """

    name: ClassVar[str] = "rules"
    inherently_calibrated: ClassVar[bool] = True

    def __init__(
        self,
        rules: str | Path | None = None,
        *,
        task: Task | str | Path | None = None,
        calibration: Calibration | str | Path | None = None,
        min_confidence: float = 0.0,
    ) -> None:
        super().__init__(task=task, calibration=calibration, min_confidence=min_confidence)
        path = _file(rules, self.task)
        if path is None:
            raise ConfigError(
                f"The task {self.task.name!r} has no rules file. Write one, a TOML file of [[rule]] tables, each with "
                "name, label, pattern and why (the last without a pattern: it decides what is left), and name it: "
                '`rules = "FILE"` in the task\'s file, Task(..., rules=FILE), or the backend rules:FILE.'
            )
        self._path = path
        self._settle_calibration(None)
        self.rules = read_rules(_read(path), self.task, where=str(path))
        self._scores = {
            rule.name: Scores(_log_probabilities(rule, self.task.names), rule=rule.name) for rule in self.rules
        }

    @classmethod
    def locate(cls, argument: str | None, **options: Any) -> Path | None:
        """The rules file; None where the task has none."""
        return _file(options.get("rules") if argument is None else argument, as_task(options.get("task")))

    def score_batch(self, texts: Sequence[str]) -> list[Scores]:
        """Score texts by the first rule that decides each."""
        return [self._score(text) for text in texts]

    def model_fingerprint(self) -> str:
        """Of the rules file's SHA-256."""
        return model_fingerprint(self._path)

    def decide(self, text: str) -> Rule:
        """The rule that decides a text.

        Raises:
            InputError: the text is not a string, or is blank.
        """
        return self._first(_window(prompt.clean(text))[0])

    def measure(self, rows: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
        """Count, on held-out (text, label) rows, the labels of those that each rule decided.

        Rows that a rule was written from would flatter it. Every rule and every label has its entry,
        in the order of the file and of the task.

        Raises:
            InputError: a text that is blank, or a label that the task does not have.
        """
        counts = {rule.name: dict.fromkeys(self.task.names, 0) for rule in self.rules}
        for position, (text, label) in enumerate(rows, start=1):
            if label not in self.task.names:
                raise InputError(
                    f"Row {position}: expected one of the labels {', '.join(self.task.names)}; found {label!r}."
                )
            counts[self.decide(text).name][label] += 1
        return counts

    def _score(self, text: str) -> Scores:
        visible, cut = _window(prompt.clean(text))
        scores = self._scores[self._first(visible).name]
        return Scores(scores.log_probabilities, truncated=True, rule=scores.rule) if cut else scores

    def _first(self, typed: str) -> Rule:
        lowered = typed.lower()
        for rule in self.rules[:-1]:
            text = typed if rule.case else lowered
            if rule.needs is not None and rule.needs(text) is None:
                continue
            if rule.find(text) is not None and (rule.unless is None or rule.unless(text) is None):
                return rule
        return self.rules[-1]


def _file(rules: str | Path | None, task: Task) -> Path | None:
    return task.rules if rules is None else Path(rules).expanduser()


def _log_probabilities(rule: Rule, labels: tuple[str, ...]) -> tuple[float, ...]:
    """The smoothed distribution of the labels that a rule decided, in natural logarithms.

    Additive smoothing with 1/K for each of K labels, one row in all: the symmetric Dirichlet prior of
    Perks (1947), "Some observations on inverse probability including a new indifference rule". A rule
    without counts stands as if it had been right on the one row it ever decided.
    """
    counts = rule.counts if any(rule.counts) else tuple(int(label == rule.label) for label in labels)
    total = sum(counts) + 1
    return tuple(math.log((count + 1 / len(labels)) / total) for count in counts)


def _window(text: str) -> tuple[str, bool]:
    """What the rules look at, and whether that is less than the text."""
    if len(text) <= HEAD_CHARACTERS + TAIL_CHARACTERS:
        return text, False
    return f"{text[:HEAD_CHARACTERS]}\n{prompt.ELLIPSIS.strip()}\n{text[-TAIL_CHARACTERS:]}", True


def _read(path: Path) -> str:
    try:  # a ValueError: bytes that are not UTF-8, or a path with a NUL or half a surrogate pair
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The rules file {path} cannot be read as UTF-8 text: {error}. Expected a TOML file of [[rule]] tables."
        ) from error
