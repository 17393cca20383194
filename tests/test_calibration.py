"""Temperature scaling: the fit, its guards, its file, what it belongs to; and `smolcls calibrate`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from hypothesis import given
from hypothesis import strategies as st

from smolcls import Calibration, Classifier, ConfigError, InputError, ModelError, Scores, registry
from smolcls.calibration import (
    MIN_ROWS,
    apply_temperature,
    fit_temperature,
    log_softmax,
    mean_nll,
    misfit,
    model_fingerprint,
)

FITTED = Calibration(1.5, task="0" * 16, model="", backend="fake", rows=100, nll_before=0.5, nll_after=0.4)


def rows_at(temperature: float, count: int = 4000) -> tuple[list[list[float]], list[int]]:
    """Rows whose labels were drawn from their softmax at a temperature."""
    generator = random.Random(3)
    rows, truth = [], []
    for _ in range(count):
        row = log_softmax([generator.gauss(0.0, 3.0) for _ in range(3)])
        rows.append(row)
        truth.append(generator.choices(range(3), apply_temperature(row, temperature))[0])
    return rows, truth


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_the_fit_recovers_the_temperature_that_made_the_rows(temperature: float) -> None:
    rows, truth = rows_at(temperature)
    fitted = fit_temperature(rows, truth)
    assert fitted == pytest.approx(temperature, rel=0.08)
    best = mean_nll(rows, truth, fitted)
    assert best <= mean_nll(rows, truth) + 1e-9
    assert all(best <= mean_nll(rows, truth, fitted * factor) for factor in (0.8, 0.95, 1.05, 1.25))


def test_where_every_row_is_right_by_far_it_sharpens_no_more_than_it_must() -> None:
    fitted = fit_temperature([log_softmax([40.0, 0.0])] * 50, [0] * 50)
    assert 0.05 <= fitted <= 1.2
    assert mean_nll([log_softmax([40.0, 0.0])], [0], fitted) < 1e-12


def test_where_the_rows_say_nothing_it_softens_as_far_as_it_may() -> None:
    assert fit_temperature([log_softmax([9.0, 0.0])] * 50, [0, 1] * 25) == pytest.approx(20.0, rel=1e-3)


def test_mean_nll_of_a_known_row() -> None:
    assert mean_nll([[math.log(0.25), math.log(0.75)]], [1]) == pytest.approx(-math.log(0.75))


@pytest.mark.parametrize(
    ("rows", "truth", "message"),
    [
        ([[0.0, 0.0]] * 5, [0] * 4, "Expected one true label a row; found 5 rows and 4 labels"),
        ([[0.0, 0.0]] * (MIN_ROWS - 1), [0] * (MIN_ROWS - 1), "fitted on 29 rows would be noise; at least 30"),
        ([], [], "fitted on 0 rows would be noise"),
        ([[0.0, 0.0]] * 30, [0] * 29 + [2], "Row 30: expected the index of one of 2 labels; found 2"),
        ([[0.0, 0.0]] * 30, [-1] * 30, "Row 1: expected the index of one of 2 labels; found -1"),
        ([[0.0, -math.inf]] * 30, [0] * 29 + [1], "Row 30: expected finite log-probabilities"),
        ([[math.nan, 0.0]] * 30, [1] * 30, "Row 1: expected finite log-probabilities"),
    ],
)
def test_guards_of_the_fit(rows: list[list[float]], truth: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_temperature(rows, truth)


@given(
    st.lists(st.floats(-800.0, 0.0), min_size=2, max_size=8),
    st.floats(0.05, 20.0),
)
def test_a_temperature_keeps_the_order_and_the_sum(values: list[float], temperature: float) -> None:
    probabilities = apply_temperature(values, temperature)
    assert math.isclose(math.fsum(probabilities), 1.0, abs_tol=1e-12)
    assert all(0.0 <= value <= 1.0 for value in probabilities)
    order = sorted(range(len(values)), key=values.__getitem__)
    assert all(probabilities[low] <= probabilities[high] for low, high in itertools.pairwise(order))


def test_log_softmax_bears_extremes() -> None:
    assert log_softmax([1000.0, 0.0]) == [0.0, -1000.0]
    assert log_softmax([-math.inf, 0.0]) == [-math.inf, 0.0]
    assert apply_temperature([-math.inf, 0.0], 2.0) == [0.0, 1.0]


@pytest.mark.parametrize("value", [0.0, 0.009, 101.0, -1.0, math.nan, math.inf, True, "1", None])
def test_a_temperature_out_of_range(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"A temperature must be a number from 0\.01 to 100; found"):
        Calibration(value, task="", model="", backend="", rows=0, nll_before=0.0, nll_after=0.0)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "calibration.json"
    FITTED.save(path)
    assert Calibration.load(path) == Calibration.load(str(path)) == FITTED
    assert [item.name for item in path.parent.iterdir()] == ["calibration.json"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "it is not a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ("{}", "its format is not smolcls-calibration-1"),
        ('{"format": "smolcls-calibration-1"}', "missing 7 required positional arguments"),
        (json.dumps({"format": "smolcls-calibration-1", "colour": 1}), "unexpected keyword argument 'colour'"),
    ],
)
def test_a_damaged_file(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"calibration.json is not a calibration that smolcls wrote .*{reason}") as e:
        Calibration.load(path)
    assert "Make it again with: smolcls calibrate" in str(e.value)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("temperature", 0, "A temperature must be a number from"),
        ("temperature", "hot", "A temperature must be a number from"),
        ("task", None, "A calibration's task must be a text; found None"),
        ("backend", 3, "A calibration's backend must be a text; found 3"),
    ],
)
def test_a_file_with_a_wrong_value(tmp_path: Path, key: str, value: Any, reason: str) -> None:
    path = tmp_path / "calibration.json"
    FITTED.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ConfigError, match=reason):
        Calibration.load(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Calibration.load(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="is not a calibration"):
        Calibration.load(tmp_path)


# What it belongs to.


def test_where_no_row_is_wrong_nothing_is_sharpened() -> None:
    row, identity = log_softmax([2.0, 0.0]), {"task": "t", "model": "m", "backend": "b"}
    assert fit_temperature([row] * 40, [0] * 40) < 0.2
    assert Calibration.fit([row] * 40, [0] * 40, **identity).temperature == 1.0
    some = Calibration.fit([row] * 40, [0] * 39 + [1], **identity)
    assert some.temperature < 1.0
    assert (some.task, some.model, some.backend, some.rows) == ("t", "m", "b", 40)
    assert some.nll_after < some.nll_before == pytest.approx(mean_nll([row] * 40, [0] * 39 + [1]))


def test_a_models_fingerprint_is_that_of_its_weights(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"abc")
    assert model_fingerprint(file) == "ba7816bf8f01cfea"
    folder = tmp_path / "folder"
    folder.mkdir()
    assert model_fingerprint(folder) == ""
    (folder / "model.safetensors").write_bytes(b"abc")
    first = model_fingerprint(folder)
    (folder / "calibration.json").write_text("{}")
    assert model_fingerprint(folder) == first != ""
    (folder / "model.safetensors").write_bytes(b"abd")
    second = model_fingerprint(folder)
    (folder / "model.onnx").write_bytes(b"abc")
    assert len({first, second, model_fingerprint(folder)}) == 3
    with pytest.raises(ModelError, match=r"cannot be read: .* Expected a model's file or folder"):
        model_fingerprint(tmp_path / "none")


def test_the_model_is_looked_at_only_where_there_is_one_to_compare_with() -> None:
    def unread() -> str:
        raise AssertionError

    assert misfit(FITTED, task=FITTED.task, backend="fake", model=unread) is None
    other = dataclasses.replace(FITTED, model="m0")
    assert misfit(other, task=FITTED.task, backend="fake", model=str) is None
    assert misfit(other, task=FITTED.task, backend="other", model=unread) == "another backend (fake; this one is other)"
    found = misfit(other, task=FITTED.task, backend="fake", model=lambda: "m1")
    assert found == "another model (fingerprint m0; this model's is m1)"


# `smolcls calibrate`.


class Sure(Classifier):
    """Right in three of four rows and far too sure of each; its model is the file `sure.bin`."""

    name = "sure"

    def __init__(self, model: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._model = model
        if model is not None:
            self.calibration_path = Path(model).with_name("calibration.json")
        self._settle_calibration(self.calibration_path)

    def model_fingerprint(self) -> str:
        return "" if self._model is None else model_fingerprint(Path(self._model))

    def score_batch(self, texts: Sequence[str]) -> list[Scores]:
        assert len(texts) == 1
        return [Scores(tuple(log_softmax([5.0 + len(text) / 100, 0.0, 0.0]))) for text in texts]


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> str:
    find = registry.find
    monkeypatch.setattr(registry, "find", lambda name: Sure if name == "sure" else find(name))
    lines = [{"text": f"x{n}", "label": "prompt" if n % 4 == 0 else "command"} for n in range(80)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    Path("sure.bin").write_bytes(b"abc")
    return "sure:sure.bin"


def test_the_command_writes_the_calibration_beside_the_model(sure: str) -> None:
    pytest.importorskip("sklearn")
    Path("calibration.json").write_text("damaged")
    result = run("calibrate", "rows.jsonl", "--backend", sure)
    assert result.exit_code == 0, result.output
    _, temperature, nll, ece, wrote = result.stdout.splitlines()
    assert wrote == "wrote calibration.json"
    fitted = Calibration.load("calibration.json")
    assert (fitted.backend, fitted.rows, fitted.model) == ("sure", 80, "ba7816bf8f01cfea")
    assert temperature.split() == ["temperature", "1.0000", f"{fitted.temperature:.4f}"]
    assert nll.split() == ["NLL", f"{fitted.nll_before:.4f}", f"{fitted.nll_after:.4f}"]
    before, after = map(float, ece.split()[1:])
    assert before > 0.2 > 0.05 > after
    with registry.load(sure) as classifier:
        assert classifier.classify("x").confidence == pytest.approx(0.75, abs=0.01)
        assert classifier.classify("x").calibrated
    Path("sure.bin").write_bytes(b"another model")
    with registry.load(sure) as classifier:
        assert not classifier.classify("x").calibrated


def test_the_command_without_a_place_beside_a_model_wants_one(sure: str) -> None:
    pytest.importorskip("sklearn")
    result = run("calibrate", "rows.jsonl", "--backend", "sure")
    assert result.exit_code == 2
    assert "give --out FILE" in result.stderr
    result = run("calibrate", "rows.jsonl", "--backend", "sure", "--out", "mine.json")
    assert result.exit_code == 0, result.output
    assert Calibration.load("mine.json").rows == 80


def test_the_command_refuses_too_few_rows_and_a_model_that_holds_its_own(sure: str) -> None:
    pytest.importorskip("sklearn")
    result = run("calibrate", "rows.jsonl", "--backend", "linear", "--out", "mine.json")
    assert result.exit_code == 2
    assert "A model of the backend 'linear' holds the calibration that was fitted in its training" in result.stderr
    Path("rows.jsonl").write_text('{"text": "x", "label": "prompt"}\n' * 29)
    result = run("calibrate", "rows.jsonl", "--backend", sure)
    assert result.exit_code == 2
    assert "fitted on 29 rows would be noise; at least 30" in result.stderr
    assert not Path("calibration.json").exists()
