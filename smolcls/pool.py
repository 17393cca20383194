"""Pools what several stages of a chain said about a text into one opinion.

A stage that was not sure enough to answer still knows something. The logarithmic opinion pool (Genest and Zidek 1986,
"Combining probability distributions: a critique and an annotated bibliography", section 3) keeps it:

    p(label) ∝ p_1(label)^w_1 · p_2(label)^w_2 · …

The weights are those that make held-out labels likeliest, as in logistic regression with one coefficient an opinion.
They need not sum to 1: opinions that err on the same texts weigh less together, independent ones more, so the pool is
calibrated by them as by a temperature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from smolcls.errors import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: No opinion is surer than this that a label is wrong: one that says 0 would be right whatever all others say.
LEAST = 1e-6
_PURPOSE = "Fitting a pool"
_LARGEST = 2.0  # of a weight; rows that an opinion tells apart without an error would have it grow without end


def pool(opinions: Mapping[str, Mapping[str, float]], weights: Mapping[str, float]) -> dict[str, float]:
    """The pooled probabilities of the labels.

    Args:
        opinions: by name, each label's probability; the labels are the same in all.
        weights: of the opinions that count, by name.
    """
    parts = [(weight, opinions[name]) for name, weight in weights.items()]
    labels = parts[0][1]
    scores = {label: sum(weight * math.log(max(part[label], LEAST)) for weight, part in parts) for label in labels}
    top = max(scores.values())
    powers = {label: math.exp(score - top) for label, score in scores.items()}
    total = sum(powers.values())
    return {label: power / total for label, power in powers.items()}


def pool_rows(probabilities: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same for many rows: the pooled probabilities, shape (rows, labels).

    Args:
        probabilities: shape (opinions, rows, labels).
        weights: shape (opinions,).
    """
    special = require("scipy.special", extra="evaluate", purpose=_PURPOSE)
    found: NDArray[np.float64] = special.softmax(_scores(_logarithms(probabilities), weights), axis=-1)
    return found


def fit_weights(probabilities: NDArray[np.float64], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """The weights, 0 to 2, under which the rows' labels are likeliest: shape (opinions,). The problem is convex.

    Args:
        probabilities: shape (opinions, rows, labels).
        truth: shape (rows,), each row's label by its place.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    optimize = require("scipy.optimize", extra="evaluate", purpose=_PURPOSE)
    special = require("scipy.special", extra="evaluate", purpose=_PURPOSE)
    import numpy as np

    parts = _logarithms(probabilities)
    rows = np.arange(len(truth))
    of_truth = parts[:, rows, truth].mean(axis=1)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        likely = special.log_softmax(_scores(parts, weights), axis=-1)
        expected = (np.exp(likely) * parts).sum(axis=2).mean(axis=1)
        return -float(likely[rows, truth].mean()), expected - of_truth

    start = np.full(len(parts), 1.0 / len(parts))
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, _LARGEST)] * len(parts))
    weights: NDArray[np.float64] = found.x
    return weights


def _logarithms(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    found: NDArray[np.float64] = np.log(np.maximum(probabilities, LEAST))
    return found


def _scores(logarithms: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    return np.tensordot(weights, logarithms, axes=1)
