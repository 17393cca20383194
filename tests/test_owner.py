"""A job goes on with the models that it was begun with; their files tell them apart, and none is loaded for that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from job_files import BESIDE, OUT, answers, write_texts
from tiny import HAS_LLAMA_CPP, HAS_ONNX, write_tiny_onnx

import smolcls
from smolcls import Classifier, ConfidenceRouter, Stage, Task, registry
from smolcls.backends.fake import FakeClassifier
from smolcls.backends.rules import RulesClassifier
from smolcls.calibration import model_fingerprint
from smolcls.jobs import classify_file

MODEL, OTHER = b"no model at all: it would not load", b"nor is this one"


def chain(*stages: Stage | str | Classifier, task: Task | None = None) -> Callable[[], ConfidenceRouter]:
    """A chain whose first stage answers everything; the others are asked nothing."""
    first = FakeClassifier("workflow") if task is None else FakeClassifier(task.names[0], task=task)
    return lambda: ConfidenceRouter([Stage(first, name="all"), *stages], task=task)


def put(path: str, content: bytes) -> Path:
    made = Path(path)
    made.parent.mkdir(exist_ok=True)
    made.write_bytes(content)
    return made


def go_on(make: Callable[[], Classifier]) -> None:
    assert classify_file("texts.txt", OUT, make, existing="resume").rows == 70


@pytest.fixture(autouse=True)
def texts() -> Path:
    return write_texts(70)


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        (Stage("llamacpp:model.gguf"), "model.gguf"),
        (Stage("llamacpp", options={"model": "model.gguf"}), "model.gguf"),
        (Stage("onnx:model.onnx"), "model.onnx"),
        (Stage("onnx", options={"model": "model.onnx"}), "model.onnx"),
        (Stage("transformers:folder"), "folder/model.safetensors"),
        (Stage("transformers", options={"model": Path("model.gguf")}), "model.gguf"),
        (Stage("linear:folder"), "folder/model.safetensors"),
        (Stage("linear:own.safetensors", name="cheap"), "own.safetensors"),
        (Stage("linear", options={"model": "own.safetensors"}), "own.safetensors"),
        (Stage("rules:own.toml"), "own.toml"),
        (Stage("rules", options={"rules": "own.toml"}), "own.toml"),
    ],
)
def test_an_exchanged_model_is_noticed_and_its_stage_named(stage: Stage, file: str) -> None:
    make = chain("rules", stage)
    put(file, MODEL)
    classify_file("texts.txt", OUT, make)
    go_on(make)
    put(file, OTHER)
    before = OUT.read_bytes()
    with pytest.raises(smolcls.InputError) as raised:
        go_on(make)
    assert str(raised.value) == (
        f"answers.jsonl cannot be gone on with: the model of stage 3 ({stage.name}) is another one than it was begun "
        "with. Put that one back. Give --force to begin anew, or another --out."
    )
    assert OUT.read_bytes() == before
    put(file, MODEL)
    go_on(make)


def test_stages_of_a_chain_within_a_chain_and_of_a_task_of_ones_own() -> None:
    task = Task(["a", "b"], rules=put("own.toml", MODEL))
    inner = ConfidenceRouter(["linear:m.safetensors", "rules"], task=task)
    make = chain(Stage(inner, name="inner"), "rules", task=task)
    classify_file("texts.txt", OUT, make)
    put("own.toml", OTHER)
    with pytest.raises(smolcls.InputError, match=r"the model of stage 2 \(inner\) / 2 \(rules\), 3 \(rules\) is anoth"):
        go_on(make)


def test_a_model_that_the_first_answers_build_is_noted() -> None:
    def building(text: str) -> str:
        put("model.gguf", MODEL)
        return "workflow"

    classify_file("texts.txt", OUT, lambda: ConfidenceRouter([FakeClassifier(building), "llamacpp:model.gguf"]))
    put("model.gguf", OTHER)
    with pytest.raises(smolcls.InputError, match=r"the model of stage 2 \(llamacpp:model.gguf\) is another one"):
        go_on(lambda: ConfidenceRouter([FakeClassifier(building), "llamacpp:model.gguf"]))


def broken(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("a stranger's")


@pytest.mark.parametrize("first", [MODEL, None])
def test_a_model_that_is_known_on_one_side_alone_is_not_compared(first: bytes | None) -> None:
    make = chain("llamacpp:model.gguf")
    if first is not None:
        put("model.gguf", first)
    classify_file("texts.txt", OUT, make)
    if first is None:
        put("model.gguf", OTHER)
    else:
        Path("model.gguf").unlink()
    go_on(make)


def test_what_no_file_tells_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = ("ollama:folder", "transformers:hub/id", "unknown", Stage("llamacpp", options={"model": "\0"}), "rules")
    put("folder/model.safetensors", MODEL)
    with monkeypatch.context() as patch:
        patch.setattr(RulesClassifier, "locate", broken)
        classify_file("texts.txt", OUT, chain(*stages))
    assert json.loads(BESIDE.read_text())["models"] == {}
    put("folder/model.safetensors", OTHER)  # beside a server's model of that name
    go_on(chain(*stages))


@pytest.mark.parametrize("noted", [None, [], {"2 (rules)": "another place"}])
def test_jobs_that_noted_no_models_go_on(noted: object) -> None:
    classify_file("texts.txt", OUT, chain("linear"))
    found = json.loads(BESIDE.read_text())
    assert found.pop("models") == {"2 (linear)": model_fingerprint(smolcls.load("linear").model_path)}  # type: ignore[attr-defined]
    BESIDE.write_text(json.dumps(found if noted is None else {**found, "models": noted}))
    go_on(chain("linear"))
    assert len(answers()) == 70


@pytest.mark.parametrize(
    "spec",
    [
        "rules",
        "linear",
        pytest.param("llamacpp", marks=pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs the extra llamacpp")),
        pytest.param("onnx", marks=pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx")),
    ],
)
def test_what_is_looked_at_is_what_is_loaded(spec: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    named = f"{spec}:{request.getfixturevalue('tiny')}" if spec == "llamacpp" else spec
    if spec == "onnx":
        named = f"onnx:{write_tiny_onnx(tmp_path / 'tiny.onnx')}"
    located = registry.locate(named)
    assert located is not None
    with smolcls.load(named) as classifier:
        assert model_fingerprint(located) == classifier.model_fingerprint()
