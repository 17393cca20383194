"""The linear model's file: what is in it, which task it serves, and how a damaged one is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smolcls import Calibration, ConfigError, ModelError, Task
from smolcls.backends import _linear_file
from smolcls.backends._linear_model import LinearModel
from smolcls.backends.linear import FILE, LinearClassifier
from smolcls.calibration import log_softmax

TASK = Task(["buy", "sell", "hold"], name="trade")


def small() -> LinearModel:
    return LinearModel(
        labels=("hold", "buy", "sell"),
        grams={"words": ["\x02", "größe"], "characters": [" a", "a ", "東京"]},
        documents=7,
        frequencies=[7, 1, 2, 3, 4],
        weights=[*range(-7, 7), 32767],
        scales=[0.1, 0.25, 1e-5],
        intercepts=[0.0, -1.5, 2.0],
        calibration=Calibration(1.25, TASK.fingerprint, "", "linear", 60, 0.5, 0.4),
    )


def test_a_model_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    model = small()
    _linear_file.save(model, tmp_path / FILE)
    back = _linear_file.load(tmp_path / FILE)
    assert (back.labels, back.grams, back.documents, back.calibration) == (
        model.labels, model.grams, model.documents, model.calibration,
    )  # fmt: skip
    for name in ("frequencies", "weights", "scales", "intercepts"):
        assert list(getattr(back, name)) == list(getattr(model, name))
    assert back.logits("a größe 東京") == model.logits("a größe 東京")


def test_any_reader_of_safetensors_reads_it(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    _linear_file.save(small(), tmp_path / FILE)
    tensors = safetensors.load_file(tmp_path / FILE)
    assert tensors["weights"].shape == (5, 3)
    assert tensors["weights"].tolist()[-1] == [5, 6, 32767]
    assert tensors["scales"].tolist() == [0.1, 0.25, 1e-5]
    assert bytes(tensors["characters"]).decode().split("\n") == [" a", "a ", "東京"]


def test_the_tasks_order_of_labels_is_kept_and_its_wording_does_not_matter(tmp_path: Path) -> None:
    _linear_file.save(small(), tmp_path / FILE)
    task = Task(["buy", "sell", "hold"], instruction="Which one?")
    with LinearClassifier(tmp_path, task=task) as classifier:
        prediction = classifier.classify("a größe")
    hold, buy, sell = log_softmax([value / 1.25 for value in small().logits("a größe")])
    assert list(prediction.probabilities) == ["buy", "sell", "hold"]
    expected = [2.718281828459045**value for value in (buy, sell, hold)]
    assert list(prediction.probabilities.values()) == pytest.approx(expected)


def test_another_calibration_goes_before_the_models_own(tmp_path: Path) -> None:
    _linear_file.save(small(), tmp_path / FILE)
    own = Calibration(2.0, TASK.fingerprint, "", "linear", 60, 0.5, 0.4)
    with LinearClassifier(tmp_path, task=TASK, calibration=own) as classifier:
        assert classifier.calibration == own


def test_a_model_for_other_labels_is_refused(tmp_path: Path) -> None:
    _linear_file.save(small(), tmp_path / FILE)
    with pytest.raises(
        ConfigError, match="was trained for the labels hold, buy, sell; the task 'three-type' has command"
    ):
        LinearClassifier(tmp_path)
    with pytest.raises(
        ConfigError, match=r"No linear model is shipped for the task 'trade'\. Train one with `smolcls train"
    ):
        LinearClassifier(task=TASK)


@pytest.mark.parametrize("model", ["", " ", 3])
def test_what_is_no_path_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match="model must be a file or folder, such as linear:runs/x; found"):
        LinearClassifier(model)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no linear model .*model\.safetensors\. Train it with"):
        LinearClassifier(tmp_path)


def damaged(content: bytes) -> dict[str, bytes]:
    """Ways in which a file can be wrong, by what is told of them."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]

    def build(change: Any) -> bytes:
        copied = json.loads(json.dumps(header))
        change(copied)
        text = json.dumps(copied).encode()
        return len(text).to_bytes(8, "little") + text + data

    def metadata(**values: str) -> Any:
        return lambda copied: copied["__metadata__"].update(values)

    def tensor(name: str, **values: Any) -> Any:
        return lambda copied: copied[name].update(values)

    return {
        "JSONDecodeError": b"hello",
        "lies at": content[:-5],
        "its format is 'other'": build(metadata(format="other")),
        "5 n-grams and 2 labels do not go with": build(metadata(labels='["a", "b"]')),
        "n-gram is in more than the 3 rows": build(metadata(documents="3")),
        "A temperature must be a number": build(metadata(calibration=small_calibration(temperature=0))),
        "a tensor has the type 'F32', expected 'I16'": build(tensor("weights", dtype="F32")),
        "KeyError: 'words'": build(lambda copied: copied.pop("words")),
        "KeyError: '__metadata__'": build(lambda copied: copied.pop("__metadata__")),
        # The intercept -1.5 becomes a NaN.
        "a scale or intercept is not a finite number": content.replace(
            bytes.fromhex("000000000000f8bf"), bytes.fromhex("000000000000f87f")
        ),
    }


def small_calibration(**values: Any) -> str:
    fitted = {
        "temperature": 1.0,
        "task": "",
        "model": "",
        "backend": "linear",
        "rows": 1,
        "nll_before": 0,
        "nll_after": 0,
    }
    return json.dumps({**fitted, **values})


def test_a_damaged_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / FILE
    _linear_file.save(small(), path)
    for told, content in damaged(path.read_bytes()).items():
        path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            LinearClassifier(path, task=TASK)
        assert f"{path} is not a linear model that smolcls wrote" in str(caught.value)
        assert told in str(caught.value)
        assert "Train it again with: smolcls train --engine linear" in str(caught.value)


@settings(max_examples=150, deadline=None, database=None)
@given(st.data())
def test_no_damage_is_more_than_a_model_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    _linear_file.save(small(), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        model = _linear_file.load(path)
    except ModelError:
        return
    assert len(model.logits("a größe 東京")) == len(model.labels)
