"""N-grams with logistic regression: the cheap first stage, and the baseline that every model has to beat.

It answers in well under a millisecond with nothing but the standard library, and knows only what its training
rows spell; `smolcls.train.linear` makes it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from smolcls import prompt
from smolcls.backends import _linear_file
from smolcls.calibration import Calibration, log_softmax, model_fingerprint
from smolcls.classifier import Classifier, Scores
from smolcls.errors import ConfigError, ModelError
from smolcls.files import user_path
from smolcls.task import SHIPPED_TASKS, Task, as_task

FILE = "model.safetensors"


class LinearClassifier(Classifier):
    """TF-IDF of words and characters with multinomial logistic regression.

    Args:
        model: the file that `smolcls train --engine linear` wrote, or the folder it is in; None is the shipped
            model of the three-type task.
        task: the task, its name or file; None is the shipped three-type task. Its labels must be the model's;
            their order and the instruction do not matter.
        calibration: a fitted temperature or its file; None takes the one that was fitted in training.
        min_confidence: below this confidence the label is None.

    Raises:
        ConfigError: there is no shipped model for the task, or the labels differ.
        ModelError: the file is missing or damaged.
    """

    name: ClassVar[str] = "linear"
    holds_calibration: ClassVar[bool] = True

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        task: Task | str | Path | None = None,
        calibration: Calibration | str | Path | None = None,
        min_confidence: float = 0.0,
    ) -> None:
        super().__init__(task=task, calibration=calibration, min_confidence=min_confidence)
        self.model_path = _file(model, self.task)
        self._model = _linear_file.load(self.model_path)
        names = self._model.labels
        if sorted(names) != sorted(self.task.names):
            raise ConfigError(
                f"{self.model_path} was trained for the labels {', '.join(names)}; the task {self.task.name!r} has "
                f"{', '.join(self.task.names)}. Name the task it was trained for, or train it for this one."
            )
        self._columns = [names.index(name) for name in self.task.names]
        self._settle_calibration(None)
        if self.calibration is None:
            # No fingerprint to compare: it was fitted on these weights, and no instruction is read here.
            self.calibration = self._model.calibration

    @classmethod
    def locate(cls, argument: str | None, **options: Any) -> Path:
        """The model's file."""
        return _file(options.get("model") if argument is None else argument, as_task(options.get("task")))

    def score_batch(self, texts: Sequence[str]) -> list[Scores]:
        """Score texts one by one."""
        return [self._score(text) for text in texts]

    def model_fingerprint(self) -> str:
        """Of the file's SHA-256."""
        return model_fingerprint(self.model_path)

    def _score(self, text: str) -> Scores:
        rendered = prompt.render(self.task, text)
        logits = self._model.logits(rendered.text)
        return Scores(tuple(log_softmax([logits[column] for column in self._columns])), rendered.truncated)


def _file(model: str | Path | None, task: Task) -> Path:
    return _shipped(task) if model is None else _find(model)


def shipped_model(task: Task) -> Path | None:
    """The model file that the package ships for a shipped task, or None."""
    if task.name in SHIPPED_TASKS and task.names == Task.load(task.name).names:
        return Path(str(files("smolcls") / "models" / f"{task.name}-linear" / FILE))
    return None


def _shipped(task: Task) -> Path:
    if (path := shipped_model(task)) is not None:
        return path
    raise ConfigError(
        f"No linear model is shipped for the task {task.name!r}. Train one with `smolcls train --engine linear` and "
        "name it: linear:runs/NAME"
    )


def _find(model: str | Path) -> Path:
    if not isinstance(model, (str, Path)) or not str(model).strip():
        raise ConfigError(f"model must be a file or folder, such as linear:runs/x; found {model!r}.")
    path = user_path(model)
    path = path / FILE if os.path.isdir(path) else path
    if not os.path.isfile(path):
        raise ModelError(f"There is no linear model {path}. Train it with: smolcls train --engine linear")
    return path
