"""The linear backend: scikit-learn's probabilities without scikit-learn, its training, and the model that ships."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
from command_line import run
from contract import ClassifierContract
from hypothesis import given, settings
from hypothesis import strategies as st

import smolcls
from smolcls import Classifier, InputError, Task
from smolcls.backends import _linear_file
from smolcls.backends._linear_model import LinearModel, character_grams, word_grams
from smolcls.backends.linear import FILE, LinearClassifier
from smolcls.data.rows import Row, shipped, write_rows
from smolcls.train.run import task_toml

needs_scikit_learn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs the extra train")

TASK = Task(["buy", "sell", "hold"], name="trade")


class TestLinear(ClassifierContract):
    backend: ClassVar[str] = "linear"
    tolerance: ClassVar[float] = 0.0
    examples: ClassVar[int] = 200

    @classmethod
    def make(cls, **options: Any) -> Classifier:
        return smolcls.load("linear", **options)


def made(count: int, labels: tuple[str, ...] = TASK.names, seed: int = 1) -> list[Row]:
    """Rows that lean to their label by some of their words."""
    draw = random.Random(seed)
    own = {label: [f"{label}{ending}" for ending in ("ing", "er", "s", " now", "?")] for label in labels}
    common = ["please", "the stock", "my shares", "tomorrow", "at once", "ÄPFEL", "don't", "é", "!", "of 3.5"]
    rows = []
    for number in range(count):
        label = labels[number % len(labels)]
        words = draw.choices(common, k=5) + draw.choices(own[label] + own[draw.choice(labels)], k=2)
        rows.append(Row(" ".join(draw.sample(words, len(words))), label))
    return rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    from smolcls.train.linear import train_linear

    return train_linear(TASK, made(300), made(60, seed=2), tmp_path_factory.mktemp("run"), test_rows=made(40, seed=3))


# The shipped model


def test_the_shipped_model_answers() -> None:
    with LinearClassifier() as classifier:
        labels = classifier.predict(["/help", "what is recursion?", "fix bug in src/auth.ts and run tests"])
        assert labels == ["command", "prompt", "workflow"]
        assert classifier.classify("/help").calibrated
        assert LinearClassifier.why_unavailable() is None
        assert classifier.model_path.stat().st_size < 3_000_000


def test_the_shipped_metrics_are_the_shipped_models() -> None:
    with LinearClassifier() as classifier:
        metrics = json.loads(classifier.model_path.with_name("metrics.json").read_text())
        for part in ("validation", "test"):
            rows = shipped("three-type", part)
            answers = classifier.predict([row.text for row in rows])
            right = sum(answer == row.label for answer, row in zip(answers, rows, strict=True))
            assert right / len(rows) == pytest.approx(metrics[part]["accuracy"], abs=0.005)
        assert metrics["test"]["accuracy"] > 0.85
        assert metrics["validation"]["ece"] < 0.06


def test_it_answers_with_the_standard_library_alone() -> None:
    code = (
        "import sys; from smolcls.backends.linear import LinearClassifier as L; L().classify('/help');"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "scipy", "sklearn", "safetensors", "torch"} & set(run.stdout.split())


def test_a_short_text_takes_less_than_a_millisecond() -> None:
    with LinearClassifier() as classifier:
        classifier.classify("warm up")
        times = []
        for _ in range(50):
            begin = time.perf_counter()
            classifier.classify("could you rename getUser to fetchUser in the whole project?")
            times.append(time.perf_counter() - begin)
    assert min(times) < 0.001


# Features and probabilities against scikit-learn


@needs_scikit_learn
@settings(max_examples=200, deadline=None, database=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_the_n_grams_are_scikit_learns(text: str) -> None:
    from sklearn.feature_extraction.text import CountVectorizer

    words = CountVectorizer(ngram_range=(1, 3), token_pattern=r"\w+|[^\w\s]").build_analyzer()
    characters = CountVectorizer(analyzer="char_wb", ngram_range=(2, 5)).build_analyzer()
    # The mark before the first word is ours: a sign that scikit-learn takes for a word of its own.
    assert Counter(word_grams(text)) == Counter(words(f"\x02{text}"))
    assert Counter(character_grams(text)) == Counter(characters(text))


@needs_scikit_learn
@pytest.mark.parametrize("labels", [("buy", "sell"), ("buy", "sell", "hold", "ask")])
def test_the_probabilities_are_scikit_learns(labels: tuple[str, ...], tmp_path: Path) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    from smolcls.train.linear import LinearSettings, fit

    rows, task = made(240, labels), Task(sorted(labels))
    model = fit(task, rows, LinearSettings(features=150))
    _linear_file.save(model, tmp_path / "model.safetensors")
    blocks = [
        TfidfVectorizer(
            ngram_range=(1, 3), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True, vocabulary=model.grams["words"],
            preprocessor=lambda text: f"\x02{text.lower()}",
        ),
        TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, vocabulary=model.grams["characters"],
        ),
    ]  # fmt: skip
    reference = make_pipeline(make_union(*blocks), LogisticRegression(C=20.0, max_iter=1000))
    reference.fit([row.text for row in rows], [row.label for row in rows])
    texts = [row.text for row in made(60, labels, seed=5)] + ["nothing known 東京", "buy buy BUY buying of 3.5"]
    with LinearClassifier(tmp_path / "model.safetensors", task=task) as classifier:
        found = classifier.predict_proba(texts)
    for ours, theirs in zip(found, reference.predict_proba(texts).tolist(), strict=True):
        assert ours == pytest.approx(theirs, abs=2e-3)  # weights of 16 bits, and where the solver stops
    assert sum(map(len, model.grams.values())) == 150


def test_whole_numbers_give_the_probabilities_of_the_sums_by_hand() -> None:
    """Two words and one pair of characters, computed on paper."""
    model = LinearModel(
        labels=("a", "b"),
        grams={"words": ["go", "stop"], "characters": [" g"]},
        documents=9,
        frequencies=[4, 9, 1],
        weights=[100, -100, -50, 50, 7, 0],
        scales=[0.01, 0.02],
        intercepts=[0.5, -0.5],
    )
    # "go go": one known word, one known pair; each vector has the length 1 whatever its idf and count.
    assert model.logits("go go") == pytest.approx([0.5 + 0.01 * (100 + 7), -0.5 + 0.02 * -100])
    assert model.logits("what?") == [0.5, -0.5]
    # idf of "go" is ln(10/5) + 1, of "stop" ln(10/10) + 1; together they have the length 1.
    go, stop = 1.6931471805599454, 1.0
    length = (go * go + stop * stop) ** 0.5
    expected = 0.5 + 0.01 * (100 * go / length - 50 * stop / length + 7)
    assert model.logits("stop go")[0] == pytest.approx(expected)


# Training


@needs_scikit_learn
def test_training_leaves_a_calibrated_model_and_its_metrics(trained: Path) -> None:
    metrics = json.loads(trained.with_name("metrics.json").read_text())
    assert metrics["labels"] == ["buy", "sell", "hold"]
    assert (metrics["validation"]["rows"], metrics["test"]["rows"]) == (60, 40)
    with LinearClassifier(trained.parent, task=TASK) as classifier:
        assert classifier.calibration is not None
        assert classifier.calibration.task == TASK.fingerprint
        assert (classifier.calibration.backend, classifier.calibration.rows) == ("linear", 60)
        assert classifier.calibration.nll_after <= classifier.calibration.nll_before
        assert metrics["test"]["temperature"] == classifier.calibration.temperature
        rows = made(40, seed=3)
        answers = classifier.predict([row.text for row in rows])
        right = sum(answer == row.label for answer, row in zip(answers, rows, strict=True))
    assert right / 40 == metrics["test"]["accuracy"] > 0.5
    assert sorted(path.name for path in trained.parent.iterdir()) == ["metrics.json", "model.safetensors"]


@needs_scikit_learn
def test_the_same_rows_give_the_same_file(trained: Path, tmp_path: Path) -> None:
    from smolcls.train.linear import train_linear

    again = train_linear(TASK, made(300), made(60, seed=2), tmp_path)
    assert again.read_bytes() == trained.read_bytes()


@needs_scikit_learn
def test_a_few_rows_are_enough_and_are_not_calibrated(tmp_path: Path) -> None:
    from smolcls.train.linear import train_linear

    rows = [Row("up", "buy"), Row("東", "sell"), Row("?", "hold")]
    path = train_linear(TASK, rows, rows, tmp_path)
    with LinearClassifier(path, task=TASK) as classifier:
        assert classifier.predict(["up", "東", "?"]) == ["buy", "sell", "hold"]
        assert not classifier.classify("up").calibrated


@needs_scikit_learn
def test_each_block_keeps_its_strongest_n_gram() -> None:
    from smolcls.train.linear import LinearSettings, fit

    model = fit(TASK, made(120), LinearSettings(features=1))
    assert sorted(map(len, model.grams.values())) == [1, 1]


@needs_scikit_learn
def test_labels_that_are_missing_or_unknown_are_refused(tmp_path: Path) -> None:
    from smolcls.train.linear import train_linear

    rows = made(60)
    with pytest.raises(InputError, match="Expected training rows of every label; found none of sell, hold"):
        train_linear(TASK, [row for row in rows if row.label == "buy"], rows, tmp_path)
    with pytest.raises(InputError, match="Expected the labels buy, sell, hold; found 'wait' at the text 'hm'"):
        train_linear(TASK, rows, [Row("hm", "wait")], tmp_path)
    assert list(tmp_path.iterdir()) == []


# The command


@needs_scikit_learn
def test_the_command_makes_a_run_that_the_backend_reads_and_that_can_be_done_again(tmp_path: Path) -> None:
    task, data, out = tmp_path / "trade.toml", tmp_path / "rows.jsonl", tmp_path / "run"
    task.write_text(task_toml(TASK), encoding="utf-8")
    write_rows(data, made(200))
    named = ("train", "--task", str(task), "--data", str(data), "--engine", "linear", "--out", str(out))
    result = run(*named)
    assert result.exit_code == 0, result.output
    assert f"trained {out / FILE}" in result.stdout
    assert f"smolcls classify --backend linear:{out} --task {out}/task.toml" in result.stdout
    first = (out / FILE).read_bytes()
    with smolcls.load(f"linear:{out}", task=TASK) as classifier:
        assert classifier.classify("selling my shares").label == "sell"
        assert classifier.calibration is not None
    (out / FILE).unlink()
    assert run("train", "--resume", "--out", str(out)).exit_code == 0
    assert (out / FILE).read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rank", "4"), "The engine linear has no setting rank; leave it out."),
        (("--create", "mine"), "Ollama cannot serve a linear model; leave --create out."),
    ],
)
def test_what_a_linear_model_has_no_use_for_is_refused_at_once(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run("train", "--engine", "linear", "--out", str(tmp_path / "run"), *arguments)
    assert (result.exit_code, message in result.output) == (2, True), result.output
    assert list(tmp_path.iterdir()) == []


@needs_scikit_learn
def test_a_linear_model_needs_no_export(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    write_rows(data, made(200, labels=("command", "prompt", "workflow")))
    assert run("train", "--data", str(data), "--engine", "linear", "--out", str(tmp_path / "run")).exit_code == 0
    result = run("export", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert "holds a linear model, which is used as it is; there is nothing to export" in result.output
