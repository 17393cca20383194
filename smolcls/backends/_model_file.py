"""What the backends have in common that load one model file into this process.

Which file answers, where it comes from, and which calibration belongs to it.
"""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import smolcls.build as builder
from smolcls import native, prompt
from smolcls.calibration import Calibration, model_fingerprint
from smolcls.classifier import Classifier, Scores
from smolcls.errors import ConfigError, pip_line
from smolcls.files import read_json, user_path
from smolcls.task import Task, check_count


class Engine(Protocol):
    """A loaded model for one task."""

    def score(self, prompts: Sequence[prompt.Prompt]) -> list[Scores]:
        """Scores for rendered prompts, in order."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text in which no special token is parsed."""
        ...

    def close(self) -> None:
        """Free the model; calling it twice does no harm."""
        ...


class ModelFileClassifier(Classifier):
    """A model in one file, in this process.

    Args:
        model: path of the file; None is the embedded default, built on first use.
        task: the task, its name or file; None is the shipped three-type task.
        calibration: a fitted temperature or its file; None takes the one beside the model if it was
            fitted for this task, backend and model.
        min_confidence: below this confidence the label is None.
        threads: CPU threads; None is one for each core this process may use.

    Raises:
        MissingExtraError: a package of the backend, or for the default the bundled base, is not installed.
        ModelError: the file is missing, damaged, or cannot be loaded.

    Subclasses say in which format a build gives them a model and which packages they need, and make an engine.
    """

    #: One of `build.FORMATS`.
    format: ClassVar[str]
    #: The extra that brings them.
    extra: ClassVar[str]
    #: Modules that the backend and its embedded default need → their packages.
    packages: ClassVar[Mapping[str, str]]

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        task: Task | str | Path | None = None,
        calibration: Calibration | str | Path | None = None,
        min_confidence: float = 0.0,
        threads: int | None = None,
    ) -> None:
        super().__init__(task=task, calibration=calibration, min_confidence=min_confidence)
        if threads is not None:
            check_count(threads, "threads", least=1)
        self.model_path = self._find(model)
        beside = self.model_path.with_name(builder.CALIBRATION)
        self._embedded = model is None
        if not self._embedded:
            self.calibration_path = beside
        self._settle_calibration(beside)
        self._threads = native.cores() if threads is None else threads
        self._engine = self._load()

    @abstractmethod
    def _load(self) -> Engine:
        """The engine on `model_path`, for the task, with so many threads."""

    @classmethod
    def locate(cls, argument: str | None, **options: Any) -> Path | None:
        """The model's file; of the embedded default the built one, None where it is not built yet."""
        model = options.get("model") if argument is None else argument
        if model is not None:
            return user_path(model)
        built = builder.find(options.get("task"), format=cls.format)
        return None if built is None else built.model

    @classmethod
    def why_unavailable(cls) -> str | None:
        """None where the packages and the bundled base are installed."""
        for module, package in cls.packages.items():
            if importlib.util.find_spec(module) is None:
                return f"{package} is not installed; {pip_line(cls.extra)}"
        if not builder.has_bundled_base():
            file = builder.FORMATS[cls.format]
            return f"no embedded model (a file works: {cls.name}:{file}); {builder.GET_BASE}"
        return None

    def score_batch(self, texts: Sequence[str]) -> list[Scores]:
        """Score texts, in order."""
        return self._engine.score([prompt.render(self.task, text) for text in texts])

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text as it stands in the prompt (no special tokens are parsed)."""
        return self._engine.tokenize(text)

    def model_fingerprint(self) -> str:
        """Of the file's SHA-256, which the build of the embedded default has noted already."""
        if self._embedded:
            return str(read_json(self.model_path.with_name(builder.RECEIPT))["sha256"])[:16]
        return model_fingerprint(self.model_path)

    def close(self) -> None:
        """Free the model; a call in another thread ends its pass first."""
        super().close()
        self._engine.close()

    def _find(self, model: str | Path | None) -> Path:
        if model is None:
            return builder.build(self.task, format=self.format).model
        if not isinstance(model, (str, Path)) or not str(model).strip():
            raise ConfigError(
                f"model must be the path of a model file, such as {self.name}:{builder.FORMATS[self.format]}; "
                f"found {model!r}."
            )
        return user_path(model)
