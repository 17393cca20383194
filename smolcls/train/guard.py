"""What is watched while a model trains: the loss, accuracy by label, the plan's expectations, and the time.

One callback of transformers' Trainer. What it decides it takes from the trainer's own history, so a resumed
run decides as an unbroken one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import TrainerCallback

from smolcls.errors import ModelError
from smolcls.train.config import TrainConfig
from smolcls.train.encode import IGNORED
from smolcls.train.watch import Watcher

#: The metric by which training stops early: the mean over the labels of their accuracies.
BEST = "accuracy"
#: Share of the run → accuracy on the validation rows that may be expected by then.
EXPECTED_ACCURACY = {1 / 3: 0.83, 2 / 3: 0.90, 1.0: 0.95}
EXPECTED_LOSS, HIGH_LOSS = 0.3, 0.8
_STABLE = "Try: --preset stable (a lower rate, a longer warm-up, tighter clipping)"


class Guard(TrainerCallback):  # type: ignore[misc]
    """Reports progress, stops a run that goes nowhere, and one that gets no better."""

    def __init__(self, config: TrainConfig, watcher: Watcher) -> None:
        self._config, self._watcher = config, watcher
        self._loss = ""
        self._begun: tuple[float, int] | None = None
        self._warned = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note when this process began, and at which step."""
        if self._begun is None:
            self._begun = (time.monotonic(), state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the step, and warn of a run that will take too long."""
        self._watcher.progress("training", state.global_step, state.max_steps, self._loss)
        assert self._begun is not None
        began, first = self._begun
        done = state.global_step - first
        # The first steps take longer than the rest; a tenth of the run tells.
        if self._warned or done < max(10, (state.max_steps - first) // 10):
            return
        hours = (time.monotonic() - began) / done * (state.max_steps - first) / 3600
        self._warned = True
        if hours > self._config.hours:
            self._watcher.say(
                f"The training will take about {hours:.1f} hours, more than the {self._config.hours:g} of --hours. It "
                "may be interrupted and resumed; fewer --epochs, or a smaller --rank, take less."
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **_: Any) -> None:
        """Stop where the loss is no number, or does not fall.

        Raises:
            ModelError: with the preset to try.
        """
        if "loss" not in logs:
            return
        loss = float(logs["loss"])
        self._loss = f"loss {loss:.3f}"
        if not math.isfinite(loss) or not math.isfinite(float(logs.get("grad_norm", 0.0))):
            raise ModelError(f"The training diverged: at step {state.global_step} the loss is {loss}. {_STABLE}.")
        losses = [item["loss"] for item in state.log_history if "loss" in item]
        if len(losses) >= 10 and state.global_step * 3 >= state.max_steps and does_not_fall(losses):
            raise ModelError(
                f"The loss does not fall: it was {losses[0]:.2f} at the start and is {losses[-1]:.2f} at step "
                f"{state.global_step} of {state.max_steps}. {_STABLE}, or look at the rows with: smolcls data check"
            )

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **_: Any) -> None:
        """Say how accurate each label is; stop where the accuracy has not risen for long."""
        found = metrics[f"eval_{BEST}"]
        labels = ", ".join(
            f"{name.removeprefix('eval_accuracy_')} {value:.1%}"
            for name, value in metrics.items()
            if name.startswith("eval_accuracy_")
        )
        expected = expected_accuracy(state.global_step / state.max_steps)
        verdict = "" if found >= expected else f"; by now {expected:.0%} may be expected"
        self._watcher.say(
            f"step {state.global_step} of {state.max_steps}: validation accuracy {found:.1%} ({labels}){verdict}"
        )
        # The history does not hold this evaluation yet in every release.
        earlier = [
            item[f"eval_{BEST}"]
            for item in state.log_history
            if f"eval_{BEST}" in item and item["step"] < state.global_step
        ]
        waited = evaluations_since_best([*earlier, found])
        if self._config.patience and waited >= self._config.patience and state.global_step < state.max_steps:
            self._watcher.say(f"Training stops early: the accuracy has not risen for {waited} evaluations.")
            control.should_training_stop = True


def does_not_fall(losses: Sequence[float]) -> bool:
    """Whether the last five logged losses are, in the middle, no better than the first."""
    return sorted(losses[-5:])[2] >= losses[0]


def evaluations_since_best(accuracies: Sequence[float]) -> int:
    """How many evaluations have passed since the first that was as good as the best."""
    return len(accuracies) - 1 - accuracies.index(max(accuracies))


def expected_accuracy(share: float) -> float:
    """The accuracy that may be expected when this share of the run is done."""
    return next((value for end, value in EXPECTED_ACCURACY.items() if share <= end), max(EXPECTED_ACCURACY.values()))


def expectations(config: TrainConfig, history: Sequence[Mapping[str, float]], seconds: float) -> list[dict[str, Any]]:
    """What was expected of the whole run, what came, and whether that is as good."""
    losses = [item["loss"] for item in history if "loss" in item]
    accuracies = [item[f"eval_{BEST}"] for item in history if f"eval_{BEST}" in item]
    made = []
    if losses:
        wanted = f"at most {HIGH_LOSS:g}, about {EXPECTED_LOSS:g}"
        made.append(_expectation("training loss", wanted, losses[-1], met=losses[-1] <= HIGH_LOSS))
    if accuracies:
        least, best = expected_accuracy(1.0), max(accuracies)
        made.append(_expectation("validation accuracy", f"at least {least:g}", best, met=best >= least))
    hours = seconds / 3600
    made.append(_expectation("hours", f"at most {config.hours:g}", hours, met=hours <= config.hours))
    return made


def _expectation(what: str, expected: str, found: float, *, met: bool) -> dict[str, Any]:
    return {"what": what, "expected": expected, "found": round(found, 4), "met": met}


def metrics_of(answers: Mapping[str, Sequence[int]]) -> Callable[[Any], dict[str, float]]:
    """The function that computes an evaluation's metrics from the likeliest tokens and the labels.

    A row is right where the model's likeliest token is the answer's at each of its places.

    Args:
        answers: each label's tokens.
    """

    def metrics(evaluated: Any) -> dict[str, float]:
        found = evaluated.predictions[0] if isinstance(evaluated.predictions, tuple) else evaluated.predictions
        # The token at one place predicts the next.
        likeliest, labels = np.asarray(found)[:, :-1], np.asarray(evaluated.label_ids)[:, 1:]
        right = ((likeliest == labels) | (labels == IGNORED)).all(axis=1)
        names = {tuple(tokens): name for name, tokens in answers.items()}
        of_row = np.array([names[tuple(row[row != IGNORED].tolist())] for row in labels])
        by_label = {
            f"accuracy_{name}": float(right[of_row == name].mean()) for name in answers if (of_row == name).any()
        }
        return {BEST: sum(by_label.values()) / len(by_label), **by_label}

    return metrics
