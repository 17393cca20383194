"""GGUF models through llama.cpp, in this process.

Which file answers, which calibration belongs to it and which texts it is asked are settled here; the
native calls are `_llamacpp_engine`'s concern.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import smolcls.build as builder
from smolcls import native, prompt
from smolcls.backends._llamacpp_engine import Engine
from smolcls.backends._llamacpp_raw import RawRuntime
from smolcls.calibration import Calibration, model_fingerprint
from smolcls.classifier import Classifier, Scores
from smolcls.errors import ConfigError, pip_line
from smolcls.files import read_json, user_path
from smolcls.scan import scan
from smolcls.task import Task, check_count

# What the extra brings; gguf and filelock are needed for the embedded default alone, and come with it.
_PACKAGES = {"llama_cpp": "llama-cpp-python", "numpy": "numpy", "gguf": "gguf", "filelock": "filelock"}


class LlamaCppClassifier(Classifier):
    """A GGUF model through llama.cpp.

    Args:
        model: path of a GGUF file; None is the embedded default, built on first use.
        task: the task, its name or file; None is the shipped three-type task.
        calibration: a fitted temperature or its file; None takes the one beside the model if it was
            fitted for this task, backend and model.
        min_confidence: below this confidence the label is None.
        threads: CPU threads; None is one for each core this process may use.

    Raises:
        MissingExtraError: llama-cpp-python, or for the default the bundled base, is not installed.
        ModelError: the file is missing, damaged, or cannot be loaded.
    """

    name: ClassVar[str] = "llamacpp"

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
        self._settle_calibration(beside, built=self._embedded)
        self._threads = native.cores() if threads is None else threads
        self._engine = Engine(self.model_path, self.task, self._threads)

    @classmethod
    def locate(cls, argument: str | None, **options: Any) -> Path | None:
        """The GGUF file; of the embedded default the built one, None where it is not built yet."""
        model = options.get("model") if argument is None else argument
        if model is not None:
            return user_path(model)
        built = builder.find(options.get("task"))
        return None if built is None else built.model

    @classmethod
    def why_unavailable(cls) -> str | None:
        """None where the binding and the bundled base are installed."""
        for module, package in _PACKAGES.items():
            if importlib.util.find_spec(module) is None:
                return f"{package} is not installed; {pip_line('local')}"
        if not builder.has_bundled_base():
            return f"no embedded model (a GGUF path works: llamacpp:model.gguf); {pip_line('local')}"
        return None

    def score_batch(self, texts: Sequence[str]) -> list[Scores]:
        """Score texts, as many at a time as fit into one decode."""
        return self._engine.score([prompt.render(self.task, text) for text in texts])

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text as it stands in the prompt (no special tokens are parsed)."""
        return self._engine.tokenize(text)

    def prompt_tokens(self, text: str) -> list[int]:
        """Token ids that a call evaluates for a text: the text and what follows it; the prefix is in the cache."""
        [tail] = self._engine.tails([prompt.render(self.task, text)])
        return list(tail)

    def raw_runtime(self) -> RawRuntime:
        """llama.cpp on the same file with the same threads, and nothing of smolcls around it."""
        return RawRuntime(self.model_path, self._threads)

    def model_description(self) -> str:
        """The model in llama.cpp's words: family, size and quantisation."""
        return self._engine.description

    def model_fingerprint(self) -> str:
        """Of the file's SHA-256, which the build of the embedded default has noted already."""
        if self._embedded:
            return str(read_json(self.model_path.with_name(builder.RECEIPT))["sha256"])[:16]
        return model_fingerprint(self.model_path)

    def close(self) -> None:
        """Free the model and its context; a call in another thread ends its decode first."""
        super().close()
        self._engine.close()

    def _find(self, model: str | Path | None) -> Path:
        if model is None:
            return builder.build(self.task).model
        if not isinstance(model, (str, Path)) or not str(model).strip():
            raise ConfigError(f"model must be the path of a GGUF file, such as llamacpp:model.gguf; found {model!r}.")
        path = user_path(model)
        scan(path)
        return path
