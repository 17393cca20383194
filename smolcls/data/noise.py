"""Rows whose label is likely wrong, by models that were trained on other families.

Confident learning (Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset
Labels", section 3.1): a row is suspect where a model that has not seen it gives another label at least the
probability that rows of that label get on average, or nine tenths. So a label that models are unsure of is
not suspect as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smolcls.data.rows import Row
from smolcls.data.split import own_family
from smolcls.errors import InputError, require

FOLDS = 5
#: Where rows are easy their average is near 1, and a model sure of an error would still be below it.
SURE = 0.9


@dataclass(frozen=True, slots=True)
class Suspect:
    """A row by its position, the probability of its label, and the label that was likelier, with its own."""

    position: int
    given: float
    label: str
    probability: float


def suspects(rows: Sequence[Row], *, seed: int = 7) -> list[Suspect]:
    """Rows with a likely label error, the likeliest first.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        InputError: fewer than two labels, or a label of fewer families than there are folds.
    """
    selection = require("sklearn.model_selection", extra="evaluate", purpose="Looking for label errors")
    labels = [row.label for row in rows]
    families = [own_family(row) for row in rows]
    names = _checked(labels, families)
    probabilities = selection.cross_val_predict(
        _model(seed),
        [row.text for row in rows],
        labels,
        groups=families,
        cv=selection.StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed),
        method="predict_proba",
    ).tolist()
    own = [values[names.index(label)] for label, values in zip(labels, probabilities, strict=True)]
    expected = _means(labels, own)
    found = []
    for position, (label, values) in enumerate(zip(labels, probabilities, strict=True)):
        best = max(range(len(names)), key=values.__getitem__)
        if names[best] != label and values[best] >= min(SURE, expected[names[best]]):
            found.append(Suspect(position, own[position], names[best], values[best]))
    return sorted(found, key=lambda suspect: suspect.given - suspect.probability)


def _checked(labels: Sequence[str], families: Sequence[str]) -> list[str]:
    """The labels in scikit-learn's order, each in enough families for every fold to have some."""
    found: dict[str, set[str]] = defaultdict(set)
    for label, family in zip(labels, families, strict=True):
        found[label].add(family)
    few = [f"{label} ({len(found[label])})" for label in sorted(found) if len(found[label]) < FOLDS]
    if few or len(found) < 2:
        raise InputError(
            f"Looking for label errors takes two labels or more, each in {FOLDS} families or more; found "
            f"{', '.join(few) or f'{len(found)} labels'}. Add rows, or check without it."
        )
    return sorted(found)


def _means(labels: Sequence[str], own: Sequence[float]) -> dict[str, float]:
    """The mean probability that each label's rows get for it."""
    values: dict[str, list[float]] = defaultdict(list)
    for label, probability in zip(labels, own, strict=True):
        values[label].append(probability)
    return {label: sum(some) / len(some) for label, some in values.items()}


def _model(seed: int) -> Any:
    """A fast model, for it is trained once a fold: n-grams of words and characters, logistic loss."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier
    from sklearn.pipeline import make_pipeline, make_union

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    return make_pipeline(make_union(words, characters), SGDClassifier(loss="log_loss", alpha=2e-5, random_state=seed))
