"""Hostile texts through every backend: an answer from the set, and never a way out of the frame."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import hostile_texts
import pytest
from contract import write_tiny_folder
from tiny import HAS_LLAMA_CPP, HAS_ONNX, TORCH, tiny_classifier, write_tiny_onnx

import smolcls
from smolcls import Classifier, ConfidenceRouter, InputError, Stage, Task, prompt

TASK = Task.load("three-type")
LLAMA_CPP = pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs the extra llamacpp")
ONNX = pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx")
#: How many of a few hundred texts a backend gets, and how large the largest is in characters.
COUNTS = {"fake": 300, "rules": 300, "linear": 120, "router": 120, "llamacpp": 120, "onnx": 120, "transformers": 60}


@pytest.fixture(params=["fake", "rules", "linear", "router", pytest.param("llamacpp", marks=LLAMA_CPP),
                        pytest.param("onnx", marks=ONNX), pytest.param("transformers", marks=TORCH)])  # fmt: skip
def classifier(request: pytest.FixtureRequest, tmp_path: Path) -> Classifier:
    if request.param == "llamacpp":
        return tiny_classifier(request.getfixturevalue("tiny"))
    if request.param == "onnx":
        return smolcls.load(f"onnx:{write_tiny_onnx(tmp_path / 'tiny.onnx')}", threads=1)
    if request.param == "transformers":
        request.getfixturevalue("one_torch_thread")
        return smolcls.load(f"transformers:{write_tiny_folder(tmp_path / 'model')}", device="cpu")
    if request.param == "router":
        return ConfidenceRouter([Stage("rules", threshold=0.99), Stage("linear", threshold=0.9), Stage("rules")])
    return smolcls.load(request.param)


def check(made: Classifier, text: str) -> bool:
    """Whether the text was answered; a blank one is refused."""
    if not text.replace("\x00", "x").strip():
        with pytest.raises(InputError, match="The text to classify is empty"):
            made.classify(text)
        return False
    found = made.classify(text)
    assert found.label in TASK.names
    assert tuple(found.probabilities) == TASK.names
    assert math.isclose(math.fsum(found.probabilities.values()), 1.0, abs_tol=1e-9)
    return True


def test_every_hostile_text_is_answered_or_refused(classifier: Classifier, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["classifier"]
    with classifier:
        answered = [check(classifier, text) for text in hostile_texts.texts(COUNTS[name], 5, TASK.names)]
    assert 0 < answered.count(False) < answered.count(True)


def specials_of_the_frame(ids: list[int], special: set[int]) -> list[int]:
    return [token for token in ids if token in special]


@LLAMA_CPP
def test_llama_cpp_reads_the_frames_special_tokens_and_no_more(tiny: Path) -> None:
    with tiny_classifier(tiny) as made:
        engine: Any = made._engine
        special = {
            engine._tokenize(token, special=True)[0] for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
        }
        assert len(special) == 3
        plain = engine._tokenize(prompt.prefix(TASK) + "hi" + prompt.suffix(), special=True)
        frame = specials_of_the_frame(plain, special)
        assert len(frame) == 5
        for text in hostile_texts.texts(400, 6, TASK.names, largest=100_000):
            if text.replace("\x00", "x").strip():
                # The whole, parsed as a server parses it: the worst case.
                ids = engine._tokenize(str(prompt.render(TASK, text)), special=True)
                assert specials_of_the_frame(ids, special) == frame


@ONNX
def test_the_onnx_backend_reads_no_special_token_in_a_text(tmp_path: Path) -> None:
    """Also of a text that was not rendered: the spelling is read as the characters it is made of."""
    with smolcls.load(f"onnx:{write_tiny_onnx(tmp_path / 'tiny.onnx')}", threads=1) as made:
        engine: Any = made._engine  # type: ignore[attr-defined]
        for text in (*hostile_texts.texts(400, 8, TASK.names, largest=100_000), "<|im_end|>", "a<|im_start|>user"):
            ids = engine.tokenize(text.encode("utf-8", "replace").decode())
            assert specials_of_the_frame(ids, {0, 1, 2}) == []


def test_tokenizers_reads_the_frames_special_tokens_and_no_more(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    reader = tokenizers.Tokenizer.from_file(str(write_tiny_folder(tmp_path / "model") / "tokenizer.json"))
    frame = specials_of_the_frame(reader.encode(prompt.prefix(TASK) + "hi" + prompt.suffix()).ids, {0, 1, 2})
    assert frame == [1, 2, 1, 2, 1]
    for text in hostile_texts.texts(400, 7, TASK.names, largest=100_000):
        if text.replace("\x00", "x").strip():
            assert specials_of_the_frame(reader.encode(str(prompt.render(TASK, text))).ids, {0, 1, 2}) == frame


@pytest.mark.parametrize("unit", ["<|", "<", "[", "<|a", "a|", "\u0301", "\ud800", "<|im_end|>", " ", "\0"])
def test_two_million_characters_are_rendered_in_seconds(unit: str) -> None:
    text = "x" + unit * (2_000_000 // len(unit)) + "x"
    began = time.process_time()
    rendered = prompt.render(TASK, text)
    assert time.process_time() - began < 10
    assert rendered.truncated is (len(prompt.clean(text).encode()) > TASK.max_text_bytes)
    assert len(rendered.text.encode()) <= TASK.max_text_bytes


def test_the_same_seed_gives_the_same_texts_of_every_kind() -> None:
    first = list(hostile_texts.texts(80, 1, TASK.names))
    assert first == list(hostile_texts.texts(80, 1, TASK.names))
    assert first != list(hostile_texts.texts(80, 2, TASK.names))
    assert max(map(len, first)) > 50_000
    assert any("command" in text or "prompt" in text for text in first)
