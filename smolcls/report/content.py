"""What a report says, as plain values: the content of `report.json`, and what the page is drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from smolcls.data.tables import LabelledText
from smolcls.evaluation.compare import FORMAT, Change, Disagreement, Pair, disagreements, pairs
from smolcls.evaluation.run import Answer, Evaluation
from smolcls.evaluation.slices import slices
from smolcls.metrics import CoveragePoint, coverage_curve, reliability

HTML, JSON = "report.html", "report.json"
MAJORITY = "majority"
_MOST = 50  # errors and disagreements that are listed
_CURVE = 200  # points of a curve that are kept


@dataclass(frozen=True)
class Report:
    """Classifiers on the same rows, side by side.

    Attributes:
        data: where the rows came from.
        task: the task's name.
        evaluations: of the classifiers that were asked for; at least one.
        baselines: of those to compare with.
        columns: the columns to slice by.
        changes: against an older report.
        gates: what was required; `failures` is what did not hold.
        remarks: what the reader has to know.
    """

    data: str
    task: str
    evaluations: tuple[Evaluation, ...]
    baselines: tuple[Evaluation, ...] = ()
    columns: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    gates: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def everyone(self) -> tuple[Evaluation, ...]:
        """The named classifiers, then the baselines."""
        return (*self.evaluations, *self.baselines)

    @property
    def drawn(self) -> tuple[Evaluation, ...]:
        """Those whose answers depend on the text: of the majority line there is nothing to draw."""
        return tuple(item for item in self.everyone if item.name != MAJORITY)

    @property
    def rows(self) -> tuple[LabelledText, ...]:
        """The rows."""
        return self.evaluations[0].rows

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every two classifiers."""
        return pairs(self.drawn)

    @cached_property
    def disagreements(self) -> list[Disagreement]:
        """The rows that classifiers answer most differently."""
        return disagreements(self.drawn, _MOST) if len(self.drawn) > 1 else []

    def errors(self, evaluation: Evaluation) -> list[Answer]:
        """A classifier's most confident wrong answers."""
        return evaluation.errors(_MOST)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, with each row's text and answers so that a later report can be compared."""
        return {
            "format": FORMAT,
            "data": self.data,
            "task": self.task,
            "labels": list(self.evaluations[0].labels),
            "remarks": list(self.remarks),
            "gates": list(self.gates),
            "failures": list(self.failures),
            "backends": {item.name: self._backend(item) for item in self.everyone},
            "pairs": [asdict(item) for item in self.pairs],
            "disagreements": [
                {**_row(item.row), "answers": {name: _answer(answer) for name, answer in item.answers.items()}}
                for item in self.disagreements
            ],
            "changes": [asdict(item) for item in self.changes],
            "rows": [
                {**_row(row), "answers": {item.name: _answer(item.answers[place]) for item in self.everyone}}
                for place, row in enumerate(self.rows)
            ],
        }

    def _backend(self, evaluation: Evaluation) -> dict[str, Any]:
        before = evaluation.metrics_before
        return {
            "baseline": evaluation in self.baselines,
            "metrics": evaluation.metrics.to_dict(),
            "before_calibration": None if before is None else before.to_dict(),
            "latency": asdict(evaluation.latency),
            "reliability": [asdict(item) for item in reliability(evaluation.probabilities, evaluation.truth)],
            "coverage": [asdict(point) for point in curve(evaluation)],
            "slices": [asdict(item) for item in slices(evaluation, self.columns)],
            "errors": [{**_row(item.row), "answer": _answer(item)} for item in self.errors(evaluation)],
        }


def curve(evaluation: Evaluation) -> list[CoveragePoint]:
    """The accuracy–coverage curve, thinned evenly where it has many points; the last one is kept."""
    points = coverage_curve(evaluation.probabilities, evaluation.truth)
    step = -(-len(points) // _CURVE)
    return points[::-1][::step][::-1]


def _row(row: LabelledText) -> Mapping[str, Any]:
    return {"text": row.text, "label": row.label}


def _answer(answer: Answer) -> list[str | float]:
    return [answer.label, round(answer.confidence, 6)]
