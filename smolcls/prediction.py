"""What a classifier answers: plain values, no behaviour beyond their own arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StageTrace:
    """What one stage of a router did with one text.

    Attributes:
        stage: the stage's name.
        outcome: `accepted`, `below-threshold`, `not-accepted-label`, `abstained`, `failed`,
            `timed-out`, `breaker-open` or `unavailable`.
        reason: the same in words, for people.
        label: the label the stage proposed, if it got that far.
        confidence: its confidence in it, 0 to 1.
        latency_ms: wall-clock milliseconds this stage took, per text of its batch.
    """

    stage: str
    outcome: str
    reason: str
    label: str | None = None
    confidence: float | None = None
    latency_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one text.

    Attributes:
        label: the label, or None where the classifier abstained (`min_confidence`).
        confidence: the probability of the likeliest label, 0 to 1.
        probabilities: every label of the task, in the task's order, to its probability; sums to 1.
        backend: name of the backend that answered.
        calibrated: whether the probabilities were calibrated on held-out rows.
        truncated: whether the text was shortened before it was scored.
        latency_ms: wall-clock milliseconds, per text of the batch it was answered in.
        label_mass: probability, 0 to 1, that the model gave to the labels' tokens before they were normalised over
            the labels. A signal for texts that are out of the task's scope: a model fine-tuned for the task gives
            nearly all of it to the labels on texts like its training rows, and less on others. It says nothing about
            which label is right, and is not calibrated: choose a limit on rows of your own. From llamacpp,
            transformers and ollama; None where a backend has no such number. `smolcls.novelty` has another signal.
        rule: name of the rule that decided, for the rules backend.
        trace: what each stage of a router did; empty for a single backend.
    """

    label: str | None
    confidence: float
    probabilities: Mapping[str, float]
    backend: str
    calibrated: bool = False
    truncated: bool = False
    latency_ms: float = 0.0
    label_mass: float | None = None
    rule: str | None = None
    trace: tuple[StageTrace, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `label_mass`, `rule` and `trace` only where they are set."""
        out: dict[str, Any] = {
            "label": self.label,
            "confidence": round(self.confidence, 6),
            "probabilities": {name: round(p, 6) for name, p in self.probabilities.items()},
            "backend": self.backend,
            "calibrated": self.calibrated,
            "truncated": self.truncated,
            "latency_ms": round(self.latency_ms, 3),
        }
        if self.label_mass is not None:
            out["label_mass"] = round(self.label_mass, 6)
        if self.rule is not None:
            out["rule"] = self.rule
        if self.trace:
            out["trace"] = [
                {
                    "stage": step.stage,
                    "outcome": step.outcome,
                    "reason": step.reason,
                    "label": step.label,
                    "confidence": None if step.confidence is None else round(step.confidence, 6),
                    "latency_ms": round(step.latency_ms, 3),
                }
                for step in self.trace
            ]
        return out
