"""Training the linear model: scikit-learn finds the weights, `smolcls.backends.linear` answers with them.

Two fits: the first over every n-gram that comes often enough says which ones matter, the second is of those
alone. What is measured and calibrated is the model as it is stored, in whole numbers, through the code that answers.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolcls import prompt
from smolcls.backends import _linear_file
from smolcls.backends._linear_model import BLOCKS, LinearModel
from smolcls.backends.linear import FILE, LinearClassifier
from smolcls.calibration import MIN_ROWS, Calibration, model_fingerprint
from smolcls.data.rows import Row
from smolcls.errors import InputError, require
from smolcls.files import write_text
from smolcls.task import Task
from smolcls.train.measure import measure

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

METRICS = "metrics.json"
_LARGEST = 32767  # of a 16-bit whole number
_PURPOSE = "Training a linear model"


@dataclass(frozen=True, slots=True)
class LinearSettings:
    """Settings of a linear model.

    Attributes:
        strength: the inverse of the L2 penalty's weight, scikit-learn's C.
        min_documents: n-grams in fewer rows are left out, from a hundred rows on.
        features: how many n-grams the model keeps. Of the 110,000 of the shipped rows 30,000 give the accuracy
            of all.
    """

    strength: float = 20.0
    min_documents: int = 2
    features: int = 30_000


def train_linear(
    task: Task,
    train_rows: Sequence[Row],
    validation_rows: Sequence[Row],
    out: str | Path,
    *,
    test_rows: Sequence[Row] = (),
    settings: LinearSettings | None = None,
) -> Path:
    """Train, calibrate and measure a linear model; `out` gets `model.safetensors` and `metrics.json`.

    Args:
        validation_rows: the temperature is fitted on them; none is with fewer than 30.
        test_rows: rows for the metrics alone.

    Returns:
        The model's file.

    Raises:
        InputError: a label of the task has no training row, or a row has another label.
        MissingExtraError: scikit-learn is not installed.
    """
    for rows in (validation_rows, test_rows):
        _indices(task, rows)
    model = fit(task, train_rows, settings)
    path = Path(out) / FILE
    _linear_file.save(replace(model, calibration=_calibration(task, model, validation_rows)), path)
    found = {}
    with LinearClassifier(path, task=task) as classifier:
        temperature = 1.0 if classifier.calibration is None else classifier.calibration.temperature
        for part, rows in (("validation", validation_rows), ("test", test_rows)):
            if rows:
                scored = [score.log_probabilities for score in classifier.score_batch([row.text for row in rows])]
                found[part] = measure(task.names, scored, _indices(task, rows), temperature)
    content = {"model": model_fingerprint(path), "backend": "linear", "labels": list(task.names), **found}
    write_text(path.with_name(METRICS), json.dumps(content, indent=2) + "\n")
    return path


def fit(task: Task, rows: Sequence[Row], settings: LinearSettings | None = None) -> LinearModel:
    """A linear model of labelled rows, without a temperature.

    Raises:
        InputError: a label of the task has no row, or a row has another label.
        MissingExtraError: scikit-learn is not installed.
    """
    settings = settings or LinearSettings()
    truth = _indices(task, rows)
    lacking = [name for index, name in enumerate(task.names) if index not in truth]
    if lacking:
        raise InputError(f"Expected training rows of every label; found none of {', '.join(lacking)}.")
    texts = _texts(task, rows)
    grams = {block: _frequent(block, texts, settings) for block in BLOCKS}
    weights, _ = _regression(_vectors(grams, texts), truth, settings)
    grams = _strongest(grams, weights, settings.features)
    vectors = _vectors(grams, texts)
    weights, intercepts = _regression(vectors, truth, settings)
    scales, whole = _whole_numbers(weights)
    return LinearModel(
        labels=task.names,
        grams=grams,
        documents=len(texts),
        frequencies=array("I", vectors.getnnz(axis=0).tolist()),
        weights=whole,
        scales=scales,
        intercepts=intercepts.tolist(),
    )


def _calibration(task: Task, model: LinearModel, rows: Sequence[Row]) -> Calibration | None:
    if len(rows) < MIN_ROWS:
        return None
    scored = [model.logits(text) for text in _texts(task, rows)]
    # It names no model, for it stands in the model's own file.
    return Calibration.fit(scored, _indices(task, rows), task=task.fingerprint, model="", backend=LinearClassifier.name)


def _texts(task: Task, rows: Sequence[Row]) -> list[str]:
    """The texts as the backend sees them."""
    return [prompt.render(task, row.text).text for row in rows]


def _indices(task: Task, rows: Sequence[Row]) -> list[int]:
    for row in rows:
        if row.label not in task.names:
            raise InputError(
                f"Expected the labels {', '.join(task.names)}; found {row.label!r} at the text {row.text[:60]!r}."
            )
    return [task.names.index(row.label) for row in rows]


def _frequent(block: str, texts: Sequence[str], settings: LinearSettings) -> list[str]:
    """The n-grams that come in enough rows, sorted; all of them where the rows are few."""
    found = Counter(gram for text in texts for gram in set(BLOCKS[block](text)))
    least = settings.min_documents if len(texts) >= 100 else 1
    return sorted(gram for gram, count in found.items() if count >= least) or sorted(found)


def _vectors(grams: Mapping[str, Sequence[str]], texts: Sequence[str]) -> Any:
    """The rows' TF-IDF vectors, block beside block: a sparse matrix of shape (texts, n-grams)."""
    extraction = require("sklearn.feature_extraction.text", extra="evaluate", purpose=_PURPOSE)
    sparse = require("scipy.sparse", extra="evaluate", purpose=_PURPOSE)
    blocks = [
        extraction.TfidfVectorizer(analyzer=BLOCKS[block], vocabulary=grams[block], sublinear_tf=True).fit_transform(
            texts
        )
        for block in BLOCKS
    ]
    return sparse.hstack(blocks, format="csr")


def _regression(
    vectors: Any, truth: Sequence[int], settings: LinearSettings
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Multinomial logistic regression: weights of shape (labels, n-grams), and intercepts."""
    linear = require("sklearn.linear_model", extra="evaluate", purpose=_PURPOSE)
    fitted = linear.LogisticRegression(C=settings.strength, max_iter=1000).fit(vectors, truth)
    weights, intercepts = fitted.coef_, fitted.intercept_
    if len(intercepts) == 1:  # of two labels scikit-learn keeps the second's lead over the first
        numpy = require("numpy", extra="evaluate", purpose=_PURPOSE)
        sides = numpy.array([[-0.5], [0.5]])
        return sides * weights, (sides * intercepts)[:, 0]
    return weights, intercepts


def _strongest(grams: Mapping[str, Sequence[str]], weights: npt.NDArray[np.float64], most: int) -> dict[str, list[str]]:
    """The n-grams whose weights differ most between labels, and of each block one at least."""
    spread = (weights.max(axis=0) - weights.min(axis=0)).tolist()
    order = sorted(range(len(spread)), key=lambda number: (-spread[number], number))
    kept = set(order[:most])
    found, first = {}, 0
    for block, some in grams.items():
        own = range(first, first + len(some))
        strongest = next(number for number in order if number in own)
        found[block] = [some[number - first] for number in own if number in kept or number == strongest]
        first += len(some)
    return found


def _whole_numbers(weights: npt.NDArray[np.float64]) -> tuple[list[float], array[int]]:
    """Each label's scale, and the weights as multiples of it, the labels of one n-gram side by side."""
    largest = abs(weights).max(axis=1)
    scales = [value / _LARGEST if value > 0 else 1.0 for value in largest.tolist()]
    whole = (weights.T / scales).round().astype("int16")
    return scales, array("h", whole.ravel().tolist())
