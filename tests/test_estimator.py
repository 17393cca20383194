"""The estimator for scikit-learn: its own checks, its tools, and what a task cannot say."""

from __future__ import annotations

import gc
import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_run import SETTINGS, needs_training, rows

import smolcls
from smolcls import ConfigError, MissingExtraError

if importlib.util.find_spec("sklearn") is None:
    pytest.skip("needs the extra train", allow_module_level=True)

import numpy as np
from contract import write_tiny_folder
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data

from smolcls.backends.fake import FakeClassifier
from smolcls.estimator import SmolclsClassifier

TEXTS = [row["text"] for row in rows(150)]
LABELS = [row["label"] for row in rows(150)]
NEW = ["/xyz", "what is abc def?", "build one two three four five six seven eight nine ten"]


class Spelled(SmolclsClassifier):
    """Takes the tables of numbers that scikit-learn's checks are made of, and writes each row as a text."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = False
        return tags

    def fit(self, X: Any, y: Any) -> Spelled:
        table, labels = validate_data(self, X, y, multi_output=True)
        super().fit(self._spelled(table), labels)
        return self

    def predict_proba(self, X: Any) -> Any:
        check_is_fitted(self, "classes_")
        return super().predict_proba(self._spelled(validate_data(self, X, reset=False)))

    @staticmethod
    def _spelled(table: Any) -> list[str]:
        return [" ".join(f"c{column}_{value:.0f}" for column, value in enumerate(line)) for line in table]


_NUMBERS = "its rows are numbers, which are no texts"
_TABLE = "it takes columns of X, which has none: X is one text a row"
#: Checks of scikit-learn that cannot hold for an estimator of texts, and why.
OF_NUMBERS = {
    **dict.fromkeys(
        (
            "check_fit_score_takes_y", "check_estimators_overwrite_params", "check_estimators_fit_returns_self",
            "check_readonly_memmap_input", "check_n_features_in_after_fitting", "check_positive_only_tag_during_fit",
            "check_estimators_dtypes", "check_dtype_object", "check_pipeline_consistency",
            "check_estimators_nan_inf", "check_estimators_pickle", "check_classifier_data_not_an_array",
            "check_classifiers_classes", "check_classifiers_train", "check_supervised_y_2d", "check_fit_idempotent",
            "check_fit_check_is_fitted", "check_n_features_in",
        ),
        _NUMBERS,
    ),
    **dict.fromkeys(
        (
            "check_dont_overwrite_parameters", "check_f_contiguous_array_estimator", "check_fit2d_1sample",
            "check_methods_sample_order_invariance", "check_methods_subset_invariance", "check_fit2d_1feature",
            "check_dict_unchanged", "check_fit2d_predict1d", "check_estimators_empty_data_messages",
            "check_estimator_sparse_array",
        ),
        _TABLE,
    ),
}  # fmt: skip


@parametrize_with_checks(  # type: ignore[untyped-decorator]
    [SmolclsClassifier()], expected_failed_checks=lambda estimator: OF_NUMBERS
)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@parametrize_with_checks([Spelled()])  # type: ignore[untyped-decorator]
def test_scikit_learns_checks_with_numbers_written_as_texts(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def fitted() -> SmolclsClassifier:
    return SmolclsClassifier().fit(TEXTS, LABELS)


def test_it_learns_and_answers_in_scikit_learns_shapes(fitted: SmolclsClassifier) -> None:
    assert fitted.predict(NEW).tolist() == ["command", "prompt", "workflow"]
    probabilities = fitted.predict_proba(NEW)
    assert probabilities.shape == (3, 3)
    assert probabilities.sum(axis=1) == pytest.approx([1, 1, 1])
    assert fitted.classes_.tolist() == ["command", "prompt", "workflow"]
    assert fitted.score(TEXTS, LABELS) > 0.98
    assert fitted.predict([]).shape == (0,)
    assert not fitted.model_.exists()  # it is in memory, and its temporary folder gone


def test_a_temperature_is_fitted_where_the_rows_suffice(fitted: SmolclsClassifier) -> None:
    assert fitted._classifier is not None
    assert fitted._classifier.calibration is not None
    assert fitted._classifier.calibration.rows == 36
    few = SmolclsClassifier().fit(TEXTS[:90], LABELS[:90])
    assert few._classifier is not None
    assert few._classifier.calibration is None


def test_every_label_is_trained_on_although_rows_are_held_out() -> None:
    rare = SmolclsClassifier().fit([*TEXTS, "xxx yyy", "yyy zzz", "qqq"], [*LABELS, "rare", "rare", "alone"])
    assert rare.predict(["xxx yyy zzz", "qqq"]).tolist() == ["rare", "alone"]


def test_columns_follow_the_sorted_classes_whatever_the_order_of_the_rows(fitted: SmolclsClassifier) -> None:
    turned = SmolclsClassifier(seed=7).fit(TEXTS[::-1], LABELS[::-1])
    assert turned.classes_.tolist() == fitted.classes_.tolist()
    assert turned.predict_proba(NEW).argmax(axis=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "made",
    [tuple, np.array, lambda texts: np.array(texts, dtype=object), lambda texts: [[text] for text in texts]],
    ids=["tuple", "array", "objects", "column"],
)
def test_texts_may_come_in_any_sequence_or_a_single_column(fitted: SmolclsClassifier, made: Any) -> None:
    again = SmolclsClassifier().fit(made(TEXTS), np.array(LABELS))
    assert again.predict_proba(made(NEW)).tolist() == fitted.predict_proba(NEW).tolist()


def test_labels_that_no_task_can_hold_get_other_names_inside() -> None:
    labels = ["", " a", "a", "a\x07", "b\nc", "a 2", 7.0]
    texts = ["aaa bbb", "ccc ddd", "eee fff", "ggg hhh", "iii jjj", "kkk lll", "mmm nnn"]
    made = SmolclsClassifier().fit(texts, [str(label) for label in labels])
    names = dict(zip(made.classes_.tolist(), made.task_.names, strict=True))
    assert names == {"": "blank", " a": "a 3", "a": "a", "a\x07": "a 4", "b\nc": "b c", "a 2": "a 2", "7.0": "7.0"}
    assert made.predict(texts).tolist() == [str(label) for label in labels]


def test_labels_may_be_numbers() -> None:
    made = SmolclsClassifier().fit(TEXTS, [len(label) for label in LABELS])
    assert made.predict(NEW).tolist() == [7, 6, 8]
    assert made.predict(NEW).dtype.kind == "i"


def test_many_labels_are_not_named_in_the_instruction() -> None:
    texts, labels = [f"w{number} x" for number in range(60)], [f"l{number % 30:02}" for number in range(60)]
    assert SmolclsClassifier().fit(texts, labels).task_.instruction == "Classify the input."
    assert SmolclsClassifier(instruction="Sort it.").fit(texts, labels).task_.instruction == "Sort it."
    assert "l01" in SmolclsClassifier().fit(texts[:3], labels[:3]).task_.instruction


def test_it_can_be_pickled_and_cloned(fitted: SmolclsClassifier) -> None:
    again = pickle.loads(pickle.dumps(fitted))
    assert again.predict_proba(NEW).tolist() == fitted.predict_proba(NEW).tolist()
    with pytest.raises(NotFittedError):
        clone(again).predict(NEW)


def test_it_works_in_scikit_learns_tools() -> None:
    assert cross_val_score(SmolclsClassifier(), TEXTS, LABELS, cv=3).min() > 0.9
    search = GridSearchCV(SmolclsClassifier(), {"settings": [{"features": 1}, {"strength": 5.0}]}, cv=2)
    assert search.fit(TEXTS, LABELS).best_params_ == {"settings": {"strength": 5.0}}
    upper = FunctionTransformer(lambda texts: [text.upper() for text in texts])
    assert make_pipeline(upper, SmolclsClassifier()).fit(TEXTS, LABELS).predict(NEW)[0] == "command"
    averaged = CalibratedClassifierCV(SmolclsClassifier(), cv=2).fit(TEXTS, LABELS)
    assert averaged.predict_proba(NEW).argmax(axis=1).tolist() == [0, 1, 2]


def test_the_model_is_kept_where_out_says(tmp_path: Path) -> None:
    for _ in range(2):  # a second fit takes the place of the first
        made = SmolclsClassifier(out=tmp_path / "kept").fit(TEXTS, LABELS)
    assert made.model_ == tmp_path / "kept" / "model.safetensors"
    with smolcls.load(f"linear:{made.model_}", task=made.task_) as classifier:
        assert classifier.predict(NEW) == made.predict(NEW).tolist()


@pytest.mark.parametrize(
    ("options", "X", "y", "said"),
    [
        ({}, TEXTS, ["a"] * 150, "at least two classes; found 1 class: .*'a'"),
        ({}, ["a b", 3.5], ["a", "b"], "Text 2 of 2: A text to classify must be a str; found float"),
        ({}, ["a b", " "], ["a", "b"], "Text 2 of 2: .*blank"),
        ({}, "a text", ["a", "b"], "Expected a sequence of texts"),
        ({}, ["a b", "c d"], ["a", None], "labels of one kind, .*; found NoneType, str"),
        ({}, [["a", "b"], ["c", "d"]], ["a", "b"], r"one column of them; found data of the shape \(2, 2\)"),
        ({}, ["a", "b", "c"], ["a", "b"], "inconsistent numbers of samples"),
        ({"settings": {"speed": 1}}, TEXTS, LABELS, "has the settings strength, .*; found 'speed'"),
        ({"engine": "quick"}, TEXTS, LABELS, "engine must be one of auto, .*; found 'quick'"),
        ({"engine": "shared", "settings": {"speed": 1}}, TEXTS, LABELS, "unknown setting 'speed'"),
        ({"base": "other"}, TEXTS, LABELS, "linear has no setting base"),
    ],
)
def test_what_cannot_be_used_is_told(options: Any, X: Any, y: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SmolclsClassifier(**options).fit(X, y)


def test_it_is_public_but_loaded_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert smolcls.SmolclsClassifier is SmolclsClassifier
    code = "import sys, smolcls; from smolcls import *; print('sklearn' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r'SmolclsClassifier needs .*pip install "smolcls\[evaluate\]"'):
        smolcls.SmolclsClassifier  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'SmolClassifier'"):
        smolcls.SmolClassifier  # noqa: B018


def fine_tuned(folder: Path, **options: Any) -> SmolclsClassifier:
    if not folder.exists():
        write_tiny_folder(folder)
    settings = {**{name: value for name, value in SETTINGS.items() if name != "engine"}, "epochs": 3.0}
    return SmolclsClassifier("shared", base=folder, settings=settings, **options)


@needs_training
@pytest.mark.usefixtures("one_torch_thread")
def test_a_language_model_is_fine_tuned_and_lives_as_long_as_the_estimator(tmp_path: Path) -> None:
    made = fine_tuned(tmp_path / "base").fit(TEXTS, LABELS)
    assert made.predict_proba(NEW).shape == (3, 3)
    assert made.score(TEXTS, LABELS) > 0.6
    with pytest.raises(ConfigError, match=r"this one's is temporary. Fit it with SmolclsClassifier\(out="):
        pickle.dumps(made)
    path = made.model_
    assert path.is_file()
    del made
    gc.collect()
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("file", "with_onnx", "backend"),
    [("model.gguf", True, "onnx"), ("model.gguf", False, "llamacpp"), ("model.safetensors", False, "linear")],
)
def test_what_a_run_has_left_says_which_backend_answers(
    file: str, with_onnx: bool, backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = SimpleNamespace(model=tmp_path / file, onnx=tmp_path / "model.onnx")
    if with_onnx:
        run.onnx.touch()
    loaded: list[str] = []

    def load(spec: str, *, task: smolcls.Task) -> FakeClassifier:
        loaded.append(spec)
        return FakeClassifier(task=task)

    monkeypatch.setattr("smolcls.train.train", lambda config, task: run)
    monkeypatch.setattr("smolcls.estimator.load", load)
    made = SmolclsClassifier(engine="trl", base="base", out="run").fit(TEXTS, LABELS)
    assert len(made.predict(NEW)) == len(NEW)
    assert loaded == [f"{backend}:{run.onnx if with_onnx else run.model}"]


@needs_training
@pytest.mark.usefixtures("one_torch_thread")
def test_a_fine_tuned_model_is_kept_in_its_folder_and_loaded_from_there(tmp_path: Path) -> None:
    made = fine_tuned(tmp_path / "base", out=tmp_path / "run").fit(TEXTS, LABELS)
    again = pickle.loads(pickle.dumps(made))
    assert again.predict_proba(NEW) == pytest.approx(made.predict_proba(NEW), abs=1e-4)
    with pytest.raises(ConfigError, match="another --out"):
        fine_tuned(tmp_path / "base", out=tmp_path / "run").fit(TEXTS, LABELS)
    assert made.predict(NEW).tolist() == again.predict(NEW).tolist()
