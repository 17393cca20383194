"""Temperature scaling: label log-probabilities become probabilities that mean what they say.

One positive number T divides the log-probabilities before they are normalised again (Guo et al.
2017, "On Calibration of Modern Neural Networks", section 4.2). It keeps the order of the labels,
so accuracy does not change. T belongs to one task, one model file and one backend: batch shapes and
quantisation move probabilities, so it is fitted on the path that answers, and `misfit` tells where else it is.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from smolcls.errors import ConfigError, InputError, ModelError
from smolcls.files import read_json, sha256, write_text

MIN_ROWS = 30
FORMAT = "smolcls-calibration-1"
_WEIGHTS = {".safetensors", ".bin", ".pt", ".gguf", ".onnx"}


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted temperature and what it was fitted on.

    Attributes:
        temperature: T > 0; above 1 softens, below 1 sharpens.
        task: fingerprint of the task.
        model: fingerprint of the model as `model_fingerprint` gives it, its name where it lies on a server, or "".
        backend: name of the backend whose scores were used.
        rows: number of held-out rows used.
        nll_before, nll_after: mean negative log-likelihood on them, in nats.
    """

    temperature: float
    task: str
    model: str
    backend: str
    rows: int
    nll_before: float
    nll_after: float

    def __post_init__(self) -> None:
        temperature = self.temperature
        number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
        if not number or not 0.01 <= temperature <= 100:
            raise ConfigError(f"A temperature must be a number from 0.01 to 100; found {temperature!r}.")
        for name in ("task", "model", "backend"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"A calibration's {name} must be a text; found {getattr(self, name)!r}.")

    @classmethod
    def fit(
        cls, rows: Sequence[Sequence[float]], truth: Sequence[int], *, task: str, model: str, backend: str
    ) -> Calibration:
        """The calibration with the best temperature for held-out rows; see `fit_temperature`.

        Where no row is wrong it does not sharpen: the best temperature would make every answer certain, for nothing
        in the rows tells where the errors are that more of them would show.
        """
        temperature = fit_temperature(rows, truth)
        if all(row[index] == max(row) for row, index in zip(rows, truth, strict=True)):
            temperature = max(1.0, temperature)
        before, after = mean_nll(rows, truth), mean_nll(rows, truth, temperature)
        return cls(temperature, task, model, backend, len(rows), before, after)

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        write_text(Path(path), json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file is missing or is not a calibration.
        """
        try:
            content = read_json(Path(path))
            if content.pop("format", None) != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            return cls(**content)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path} is not a calibration that smolcls wrote ({error}). Make it again with: smolcls calibrate"
            ) from error


class Fitted(Protocol):
    """What was fitted on one task, one backend and one model; any of the three may have changed since."""

    @property
    def task(self) -> str:
        """Fingerprint of the task."""

    @property
    def backend(self) -> str:
        """Name of the backend."""

    @property
    def model(self) -> str:
        """Fingerprint of the model, or "" where none is known."""


def misfit(fitted: Fitted, *, task: str, backend: str, model: Callable[[], str]) -> str | None:
    """What else it was fitted for, in words; None where it belongs to this task, backend and model.

    Args:
        model: gives the model's fingerprint, or "" where it is not known. Asked only where there is one to compare
            with, for it may have to read the whole file.
    """
    if fitted.task != task:
        return f"another task or another version of it (fingerprint {fitted.task}; this task's is {task})"
    if fitted.backend != backend:
        return f"another backend ({fitted.backend}; this one is {backend})"
    if fitted.model and (found := model()) and found != fitted.model:
        return f"another model (fingerprint {fitted.model}; this model's is {found})"
    return None


def model_fingerprint(path: Path) -> str:
    """16 hex digits: of a model file's SHA-256, or of those of the weights in a folder; "" where there are none.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        if path.is_file():
            return sha256(path)[:16]
        parts = sorted(item for item in path.iterdir() if item.suffix in _WEIGHTS and item.is_file())
        together = "".join(item.name + sha256(item) for item in parts)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}. Expected a model's file or folder.") from error
    return hashlib.sha256(together.encode()).hexdigest()[:16] if parts else ""


def log_softmax(logits: Sequence[float]) -> list[float]:
    """Log-probabilities of a vector of logits (or unnormalised log-probabilities)."""
    top = max(logits)
    total = top + math.log(math.fsum(math.exp(value - top) for value in logits))
    return [value - total for value in logits]


def apply_temperature(log_probabilities: Sequence[float], temperature: float) -> list[float]:
    """Probabilities at a temperature; they sum to 1."""
    return [math.exp(value) for value in log_softmax([value / temperature for value in log_probabilities])]


def mean_nll(rows: Sequence[Sequence[float]], truth: Sequence[int], temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of the true labels, in nats.

    Args:
        rows: label log-probabilities, one sequence of the same length a row.
        truth: index of the true label of each row.
    """
    losses = (
        -log_softmax([value / temperature for value in row])[index] for row, index in zip(rows, truth, strict=True)
    )
    return math.fsum(losses) / len(truth)


def check_enough(rows: int) -> None:
    """Raise `InputError` where a temperature fitted on so many rows would be noise."""
    if rows < MIN_ROWS:
        raise InputError(
            f"A temperature fitted on {rows} rows would be noise; at least {MIN_ROWS} held-out rows are needed."
        )


def fit_temperature(rows: Sequence[Sequence[float]], truth: Sequence[int]) -> float:
    """The temperature in [0.05, 20] with the least negative log-likelihood.

    In 1/T the loss is convex, so in log T it has one minimum; golden-section search finds it. Where every
    row is right by far the loss is 0 over a range, and the end of it that sharpens least is taken.

    Args:
        rows: label log-probabilities, one sequence of the same length a row.
        truth: index of the true label of each row.

    Raises:
        InputError: fewer than `MIN_ROWS` rows, an index that is no label's, or a true label with the probability 0.
    """
    if len(rows) != len(truth):
        raise InputError(f"Expected one true label a row; found {len(rows)} rows and {len(truth)} labels.")
    check_enough(len(rows))
    for position, (row, index) in enumerate(zip(rows, truth, strict=True), start=1):
        if not 0 <= index < len(row):
            raise InputError(f"Row {position}: expected the index of one of {len(row)} labels; found {index}.")
        # Such a row costs infinitely much at every temperature: there would be nothing to compare.
        if not math.isfinite(row[index]) or not all(value < math.inf for value in row):
            raise InputError(f"Row {position}: expected finite log-probabilities; found {list(row)}.")
    low, high = math.log(0.05), math.log(20.0)
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if mean_nll(rows, truth, math.exp(left)) < mean_nll(rows, truth, math.exp(right)):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2.0)
