"""Put a short text into one of a few labels on your own machine, and know how sure that is.

    >>> import smolcls
    >>> smolcls.classify("fix bug in src/auth.ts and run tests").label
    'workflow'

Importing this package loads no model and no native library.
"""

import atexit as _atexit
import threading as _threading
import typing as _typing
from collections.abc import Iterable as _Iterable
from typing import Any as _Any

from smolcls.breaker import CircuitBreaker
from smolcls.calibration import Calibration
from smolcls.classifier import Classifier, Scores
from smolcls.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    CircuitOpenError,
    ConfigError,
    InputError,
    MissingExtraError,
    ModelError,
    SmolclsError,
)
from smolcls.errors import require as _require
from smolcls.prediction import Prediction, StageTrace
from smolcls.registry import load
from smolcls.router import ConfidenceRouter
from smolcls.settings import default_router as _default_router
from smolcls.settings import load_router
from smolcls.stage import Stage
from smolcls.task import Label, Task

if _typing.TYPE_CHECKING:
    from smolcls.data.tables import LabelledText as _LabelledText
    from smolcls.estimator import SmolclsClassifier as SmolclsClassifier
    from smolcls.evaluation import Evaluation as _Evaluation

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BackendTimeoutError",
    "BackendUnavailableError",
    "Calibration",
    "CircuitBreaker",
    "CircuitOpenError",
    "Classifier",
    "ConfidenceRouter",
    "ConfigError",
    "InputError",
    "Label",
    "MissingExtraError",
    "ModelError",
    "Prediction",
    "Scores",
    "SmolclsError",
    "Stage",
    "StageTrace",
    "Task",
    "classify",
    "classify_batch",
    "evaluate",
    "load",
    "load_router",
]

_lock = _threading.Lock()
_router: ConfidenceRouter | None = None


def classify(text: str) -> Prediction:
    """Classify one text with the chain that the environment, a `smolcls.toml` or the default names.

    The chain is made on the first call and shared by all threads; see `smolcls.settings`.

    Raises:
        InputError: the text is not a string, or is empty or blank.
        SmolclsError: no stage of the chain could answer, or it is configured wrongly.
    """
    return _shared().classify(text)


def classify_batch(texts: _Iterable[str]) -> list[Prediction]:
    """Classify texts, in order, with the chain that `classify` uses."""
    return _shared().classify_batch(texts)


def evaluate(classifier: Classifier, rows: "_Iterable[_LabelledText | tuple[str, str]]") -> "_Evaluation":
    """Let a classifier answer labelled rows, and measure how well: see `smolcls.evaluation`.

    Raises:
        InputError: there are no rows, or one has a blank text or a label that the task does not have.
        MissingExtraError: scikit-learn is not installed.
    """
    from smolcls.evaluation import evaluate as run

    return run(classifier, rows)


def __getattr__(name: str) -> _Any:
    # Late, and no part of `__all__`: it needs scikit-learn, which a star import must not.
    if name == "SmolclsClassifier":
        _require("sklearn", extra="evaluate", purpose="SmolclsClassifier")
        from smolcls.estimator import SmolclsClassifier

        return SmolclsClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _shared() -> ConfidenceRouter:
    global _router
    with _lock:
        if _router is None:
            _router = _default_router()
            # Freed before the interpreter's own teardown, where native finalisers have nothing to stand on.
            _atexit.register(_router.close)
        return _router
