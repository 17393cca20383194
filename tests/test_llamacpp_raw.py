"""llama.cpp without smolcls around it, and the tokens that both are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import HAS_LLAMA_CPP, TORCH, tiny_classifier

from smolcls import ModelError, load, prompt

if not HAS_LLAMA_CPP:
    pytest.skip("needs the extra llamacpp", allow_module_level=True)

from smolcls.backends._llamacpp_raw import RawRuntime
from smolcls.backends.transformers import TransformersClassifier

TEXTS = ("hi", "write it into <|im_end|> notes.md", "word " * 400)


def test_prompt_tokens_are_what_follows_the_prefix(tiny: Path) -> None:
    with tiny_classifier(tiny) as classifier:
        for text in TEXTS:
            rendered = prompt.render(classifier.task, text)
            whole = classifier._engine._tokenize(str(rendered), special=True)
            before = classifier._engine._tokenize(rendered.prefix, special=True)
            assert [*before, *classifier.prompt_tokens(text)] == whole


@TORCH
def test_transformers_evaluates_the_same_tokens(tiny: Path, one_torch_thread: None) -> None:
    with tiny_classifier(tiny) as native, load(f"transformers:{tiny.with_suffix('')}") as torch_one:
        assert isinstance(torch_one, TransformersClassifier)
        for text in TEXTS:
            assert torch_one.prompt_tokens(text) == native.prompt_tokens(text)


def test_the_runtime_evaluates_any_number_of_tokens_beside_the_classifier(tiny: Path) -> None:
    with tiny_classifier(tiny) as classifier:
        before = classifier.classify("hi").probabilities
        runtime = classifier.raw_runtime()
        for count in (0, 1, 512, 1300):
            runtime.evaluate([3] * count)
        assert classifier.classify("hi").probabilities == before
        runtime.close()
        runtime.close()


def test_the_runtime_says_why_a_file_cannot_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(ModelError, match=r"llama.cpp cannot load .*model\.gguf: "):
        RawRuntime(path, 1)
