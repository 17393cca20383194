"""The generating models: which specification is which, and what each asks its library for."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from contract import write_tiny_folder
from ollama_server import OllamaServer, as_json, error

from smolcls.data.generate import open_generator
from smolcls.errors import BackendUnavailableError, ConfigError, MissingExtraError, ModelError

OLLAMA = pytest.mark.skipif(importlib.util.find_spec("ollama") is None, reason="needs the extra ollama")
TRANSFORMERS = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the extra transformers")
LLAMA_CPP = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs the extra llamacpp")


@pytest.mark.parametrize("spec", ["", "ollama", "ollama:", "transformers", "gpt:x", "llamacp:x.gguf"])
def test_another_specification_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match=rf"named by ollama:NAME, llamacpp:FILE, transformers.*found '{spec}'"):
        open_generator(spec)


@OLLAMA
def test_ollama_is_asked_through_the_models_own_template(monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(body: dict[str, Any]) -> Any:
        return as_json({"model": body["model"], "response": "1. hello", "done": True})

    with OllamaServer(reply) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.host)
        generator = open_generator("ollama:big:7b")
        assert generator.generate("Write.", 11, 60) == "1. hello"
        generator.close()
        (body,) = server.bodies
    assert (body["model"], body["prompt"], body["stream"]) == ("big:7b", "Write.", False)
    assert not body.get("raw")
    assert body["options"] == {"seed": 11, "num_predict": 60, "num_ctx": 4096, "temperature": 1.0, "top_p": 0.95}


@OLLAMA
def test_a_model_that_ollama_lacks_and_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaServer(lambda body: error(404, "model 'big' not found")) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.host)
        generator = open_generator("ollama:big")
        with pytest.raises(ModelError, match=r"Expected the model 'big' in Ollama .*Fetch it with `ollama pull big`"):
            generator.generate("Write.", 1, 5)
        generator.close()
    generator = open_generator("ollama:big")
    with pytest.raises(BackendUnavailableError, match="found no server there"):
        generator.generate("Write.", 1, 5)
    generator.close()


@LLAMA_CPP
def test_a_file_that_is_no_model_is_refused_before_llama_cpp_sees_it(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\xff" * 40)
    with pytest.raises(ModelError, match=r"model\.gguf"):
        open_generator(f"llamacpp:{tmp_path / 'model.gguf'}")


def add_template(folder: Path) -> Path:
    template = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}<|im_start|>"
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, "eos_token": "<|im_end|>"})
    )
    return folder


@TRANSFORMERS
def test_transformers_writes_the_same_for_the_same_seed(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    generator = open_generator(f"transformers:{add_template(write_tiny_folder(tmp_path / 'model'))}")
    state = torch.random.get_rng_state()
    one, again, other = (generator.generate("Write.", seed, 12) for seed in (1, 1, 2))
    generator.close()
    assert one == again != other
    assert "Write." not in one
    assert torch.equal(torch.random.get_rng_state(), state)  # the program's own random numbers are left alone


@TRANSFORMERS
def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "model")
    with pytest.raises(ModelError, match="has no chat template: expected a model that was trained to answer messages"):
        open_generator(f"transformers:{folder}")
    with pytest.raises(ModelError, match="transformers cannot load"):
        open_generator(f"transformers:{tmp_path / 'nothing'}")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ollama", None)
    with pytest.raises(MissingExtraError, match=r'pip install "smolcls\[ollama\]"'):
        open_generator("ollama:x")
