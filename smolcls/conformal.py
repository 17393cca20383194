"""Label sets that hold the true label with a stated probability: split conformal prediction.

A set has every label that is at least as likely as the true labels of most held-out rows were. With the
ceil((n + 1) * coverage)-th largest of their n probabilities as the least one, the true label of a further text, drawn
as the rows were, is in its set with probability `coverage` at least, whatever the model (Vovk, Gammerman and Shafer
2005, "Algorithmic Learning in a Random World"; Sadinle, Lei and Wasserman 2019, "Least ambiguous set-valued
classifiers with bounded error levels"; Angelopoulos and Bates 2021, arXiv:2107.07511). The likeliest label is always
in, so that no set is empty; that can only add to the coverage.

The coverage is over all texts: easy ones have it above, hard ones below. This module knows predictions, and no models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smolcls.bounds import check_open_fraction
from smolcls.errors import ConfigError, InputError
from smolcls.files import read_json, write_text
from smolcls.prediction import Prediction

FORMAT = "smolcls-conformal-1"


@dataclass(frozen=True, slots=True)
class Conformal:
    """How likely a label has to be for a place in the set; made by `Classifier.fit_conformal`.

    Attributes:
        coverage: probability, at the least, that a set holds the true label; above 0 and below 1.
        least: probability of a label from which on it is in the set.
        labels: the task's labels, in their order.
        task: fingerprint of the task.
        model: fingerprint of the model, or "".
        backend: name of the classifier whose predictions were used.
        temperature: the temperature that their probabilities had; 1.0 without a calibration.
        rows: number of held-out rows used.
    """

    coverage: float
    least: float
    labels: tuple[str, ...]
    task: str
    model: str
    backend: str
    temperature: float
    rows: int

    def __post_init__(self) -> None:
        check_open_fraction(self.coverage, "coverage")
        for name in ("least", "temperature"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 100.0:
                raise ConfigError(f"A conformal predictor's {name} must be a number from 0 on; found {value!r}.")
        for name in ("task", "model", "backend"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"A conformal predictor's {name} must be a text; found {getattr(self, name)!r}.")

    def predict_set(self, prediction: Prediction) -> tuple[str, ...]:
        """The labels of a prediction's set, the likeliest first; equally likely ones in the task's order.

        Raises:
            InputError: the prediction has other labels.
        """
        found = prediction.probabilities
        if tuple(found) != self.labels:
            raise InputError(
                f"Expected a prediction of the labels {', '.join(self.labels)}; found {', '.join(found)}. Label sets "
                "hold for the classifier that they were fitted on."
            )
        likeliest, *others = sorted(self.labels, key=lambda name: -found[name])
        return (likeliest, *(name for name in others if found[name] >= self.least))

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        write_text(Path(path), json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Conformal:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file is missing or is no conformal predictor.
        """
        try:
            content = read_json(Path(path))
            if content.pop("format", None) != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            return cls(labels=_names(content.pop("labels", None)), **content)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path} is not a conformal predictor that smolcls wrote ({error}). Make it again with "
                "Classifier.fit_conformal."
            ) from error


def least_probability(probabilities: Sequence[float], coverage: float) -> float:
    """The probability that a label needs for its place in a set.

    Args:
        probabilities: of the true label of each held-out row.
        coverage: above 0 and below 1.

    Raises:
        ConfigError: the coverage is out of its range.
        InputError: too few rows for the coverage; the message says how many it takes.
    """
    check_open_fraction(coverage, "coverage")
    rows = len(probabilities)
    # Multiplied, a coverage such as 0.7 may come out a hair above the whole number that is meant.
    rank = math.ceil((rows + 1) * coverage - 1e-9)
    if rank > rows:
        needed = math.ceil(coverage / (1.0 - coverage) - 1e-9)
        raise InputError(
            f"Label sets of coverage {coverage:g} take at least {needed} held-out rows; found {rows}. Add rows, or "
            "lower the coverage."
        )
    return sorted(probabilities, reverse=True)[max(0, rank - 1)]


def _names(found: Any) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"its labels are {found!r}")
    return tuple(found)
