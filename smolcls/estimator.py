"""The way in for scikit-learn: an estimator that trains on texts and labels, and answers with a trained backend.

It knows what scikit-learn asks of a classifier; the training is `smolcls.train`'s, the answers are a backend's.
Imported only where `smolcls.SmolclsClassifier` is asked for, for it needs scikit-learn.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from smolcls.calibration import MIN_ROWS
from smolcls.classifier import Classifier, check_texts
from smolcls.errors import ConfigError, InputError
from smolcls.registry import load
from smolcls.task import Label, Task

_LINEAR = "linear"
#: Beyond these the names are left to the weights: in the instruction they would be most of every prompt.
_MOST_NAMED = 20
_MANY_LABELS = "Classify the input."


class SmolclsClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A text classifier for scikit-learn's pipelines, searches and cross-validation.

    `X` is a list, array or column of texts, or a table of one column of them; `y` holds the labels, which may be
    anything that sorts. `predict_proba` has its columns in the order of `classes_`.

    Args:
        engine: `linear` trains n-grams in seconds; `auto`, `shared`, `trl` and `unsloth` fine-tune a language model
            in minutes to hours, and answer through ONNX Runtime where it is installed, else through llama.cpp.
        out: folder of the result, which a fine-tuning must not find used; None is a temporary one that lives as long
            as the estimator. Leave it out where several are fitted, as in a cross-validation.
        base: what is fine-tuned, as for `smolcls.train.TrainConfig`.
        settings: further settings by name: those of `TrainConfig`, or for `linear` of `LinearSettings`, such as
            `{"strength": 5.0}`.
        instruction: the sentence that a language model reads; "" is a task's default, or one that does not name
            the labels where they are more than twenty.
        seed: of everything that is drawn.

    Attributes:
        classes_: the labels, sorted.
        task_: the task of the model; a label that no task can hold has another name there.
        model_: path of the model's file; for `linear` without `out` it is gone, for the model is in memory.

    About a tenth of the rows is held out of the training, to fit the temperature on; `linear` trains on all where
    that would be fewer than thirty rows, and its probabilities are uncalibrated then. Fine-tuning holds out as
    much again, to measure the result. A fitted `linear` can be pickled; a fine-tuned model with `out` too, for it is
    loaded from there.
    """

    def __init__(
        self,
        engine: str = _LINEAR,
        *,
        out: str | Path | None = None,
        base: str | Path = "bundled",
        settings: Mapping[str, Any] | None = None,
        instruction: str = "",
        seed: int = 7,
    ) -> None:
        self.engine = engine
        self.out = out
        self.base = base
        self.settings = settings
        self.instruction = instruction
        self.seed = seed

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = True  # of one column
        return tags

    def fit(self, X: Any, y: Any) -> SmolclsClassifier:
        """Train on texts and their labels.

        Raises:
            InputError: the texts or labels cannot be used; a ValueError, as scikit-learn expects.
            ConfigError: so a setting.
            SmolclsError: the training failed.
        """
        classes, codes = _classes(y)
        texts = _texts(X)
        if not texts:
            raise InputError("Expected texts to train on; found 0 samples, while a minimum of 1 is required.")
        check_consistent_length(texts, codes)
        if len(classes) < 2:
            raise InputError(f"Expected rows of at least two classes; found {len(classes)} class: {classes[0]!r}.")
        instruction = self.instruction or (_MANY_LABELS if len(classes) > _MOST_NAMED else "")
        task = Task(_names(classes.tolist()), instruction=instruction)
        temporary = Path(tempfile.mkdtemp(prefix="smolcls-")) if self.out is None else None
        try:
            model = self._train(task, list(zip(texts, codes.tolist(), strict=True)), temporary)
            classifier = _load(model, task)
        except BaseException:
            _end(None, temporary)
            raise
        if self.engine == _LINEAR:
            _end(None, temporary)
            temporary = None
        self.classes_, self.task_, self.model_, self._temporary = classes, task, model, temporary
        self._keep(classifier)
        return self

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The likeliest label of each text, shape (texts,)."""
        probabilities = self.predict_proba(X)
        return np.asarray(self.classes_[probabilities.argmax(axis=1)])

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """The labels' probabilities, shape (texts, classes), columns as in `classes_`."""
        check_is_fitted(self, "classes_")
        classifier = self._classifier
        if classifier is None:
            classifier = _load(self.model_, self.task_)
            self._keep(classifier)
        answers = classifier.predict_proba(_texts(X))
        return np.array(answers, dtype=np.float64).reshape(-1, len(self.classes_))

    def _train(self, task: Task, rows: Sequence[tuple[str, int]], temporary: Path | None) -> Path:
        from smolcls.data.rows import Row, write_rows
        from smolcls.train import TrainConfig, train

        labelled = [Row(text, task.names[code]) for text, code in rows]
        out = temporary / "run" if temporary is not None else Path(str(self.out))
        settings = dict(self.settings or {})
        own = {} if self.engine == _LINEAR else settings
        with tempfile.TemporaryDirectory(prefix="smolcls-") as folder:
            data = Path(folder) / "rows.jsonl"
            given = {"data": data, "engine": self.engine, "base": self.base, "seed": self.seed, "out": out}
            config = TrainConfig.from_dict({**own, **given})
            if self.engine == _LINEAR:
                return _train_linear(task, labelled, out, settings, config.seed)
            write_rows(data, labelled)
            run = train(config, task=task)
            return run.onnx if run.onnx.is_file() else run.model  # it is there where ONNX Runtime takes it

    def _keep(self, classifier: Classifier) -> None:
        """Answer with this classifier; it is closed, and a temporary folder removed, when the estimator goes."""
        former = vars(self).get("_finalizer")
        if former is not None:
            former()
        self._classifier: Classifier | None = classifier
        self._finalizer = weakref.finalize(self, _end, classifier, self._temporary)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if state.pop("_finalizer", None) is None or self.engine == _LINEAR:
            return state
        if self._temporary is not None:
            raise ConfigError(
                "A fine-tuned model can be pickled where its folder stays; this one's is temporary. Fit it with "
                "SmolclsClassifier(out=…)."
            )
        return {**state, "_classifier": None}


def _classes(y: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp]]:
    """The labels that come, sorted, and for each row the index of its own."""
    if y is None:
        raise InputError("SmolclsClassifier requires y to be passed, but the target y is None.")
    labels = column_or_1d(y, warn=True)
    assert_all_finite(labels, input_name="y")
    try:
        check_classification_targets(labels)
        classes, codes = np.unique(labels, return_inverse=True)
    except TypeError as error:  # text beside numbers, or beside nothing
        kinds = ", ".join(sorted({type(label).__name__ for label in labels.tolist()}))
        raise InputError(f"Expected labels of one kind, which can be sorted; found {kinds}.") from error
    return classes, codes


def _texts(X: Any) -> list[str]:
    """The texts of a sequence, or of a table of one column."""
    if hasattr(X, "nnz"):
        raise InputError("Expected texts; found a sparse matrix. Sparse data is not supported.")
    # As objects: an array of texts proper would give each of them the room of the longest.
    table = np.asarray(X, dtype=object)
    if table.ndim == 2 and table.shape[1] == 1:
        table = table[:, 0]
    if table.ndim != 1:
        raise InputError(
            "Expected a sequence of texts, or a table of one column of them; found data of the shape "
            f"{table.shape}. Reshape your data: one text a sample."
        )
    return check_texts(table.tolist())


def _names(classes: Sequence[object]) -> list[str]:
    """A name for each class: its own text where a task can hold it, else what can be kept of it."""
    own = [str(item) for item in classes]
    taken = {name for name in own if _is_name(name)}
    if len(set(own)) < len(own):
        raise InputError(f"Expected labels that differ when they are written; found {', '.join(own)}.")
    found = []
    for name in own:
        if not _is_name(name):
            cleaned = " ".join("".join(sign if sign.isprintable() else " " for sign in name).split()) or "blank"
            numbered = (cleaned if number == 1 else f"{cleaned} {number}" for number in range(1, len(own) + 2))
            name = next(candidate for candidate in numbered if candidate not in taken)
            taken.add(name)
        found.append(name)
    return found


def _is_name(text: str) -> bool:
    try:
        Label(text)
    except ConfigError:
        return False
    return True


def _train_linear(task: Task, rows: Sequence[Any], out: Path, settings: Mapping[str, Any], seed: int) -> Path:
    from smolcls.train.linear import LinearSettings, train_linear

    known = [item.name for item in fields(LinearSettings)]
    for name in settings:
        if name not in known:
            raise ConfigError(f"The engine {_LINEAR} has the settings {', '.join(known)}; found {name!r}.")
    kept, held = _held_out(rows, seed)
    return train_linear(task, kept, held, out, settings=LinearSettings(**settings))


def _held_out(rows: Sequence[Any], seed: int) -> tuple[Sequence[Any], Sequence[Any]]:
    """The rows to train on, and those for the temperature, drawn label by label; none where they would be too few.

    Near-copies are not kept together, as `smolcls.data.split` does it: among 10,000 rows that takes a minute.
    """
    labels = Counter(row.label for row in rows)
    size = round(len(rows) * max(0.1, min(0.3, 1.2 * MIN_ROWS / len(rows))))
    if size < max(MIN_ROWS, len(labels)) or min(labels.values()) < 2:
        return rows, ()
    kept, held = train_test_split(rows, test_size=size, stratify=[row.label for row in rows], random_state=seed)
    return kept, held


def _load(model: Path, task: Task) -> Classifier:
    backend = {".safetensors": "linear", ".onnx": "onnx"}.get(model.suffix, "llamacpp")
    return load(f"{backend}:{model}", task=task)


def _end(classifier: Classifier | None, folder: Path | None) -> None:
    if classifier is not None:
        classifier.close()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
