"""Models that write texts: one method, `generate`, over Ollama, llama.cpp and transformers.

Each of the three takes the model's own chat template, for these are other people's models. Prompts, and what
becomes of the answers, are the concern of `write`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from smolcls import build, native
from smolcls.errors import BackendError, ConfigError, ModelError, require
from smolcls.files import user_path
from smolcls.scan import scan

CONTEXT = 4096  # tokens: the prompt, with the labels of a large task, and the answer
TEMPERATURE = 1.0
TOP_P = 0.95
_OLLAMA_TIMEOUT = 600.0  # seconds; a large model on a CPU writes a few tokens a second


class Generator(Protocol):
    """What `smolcls.data.write` needs of a model."""

    def generate(self, prompt: str, seed: int, max_tokens: int) -> str:
        """An answer to a user's message; another seed gives another one. Raises only `SmolclsError`s."""

    def close(self) -> None:
        """Free what it holds."""


def open_generator(spec: str) -> Generator:
    """The generator of a specification: `ollama:NAME`, `llamacpp:FILE`, `transformers:FOLDER` or `:HUB_ID`.

    `llamacpp` alone is the bundled SmolLM2-135M-Instruct, which is small for this work.

    Raises:
        ConfigError: the specification is none of these.
        MissingExtraError: the package it needs is not installed.
        ModelError: the model is missing or damaged.
    """
    name, _, argument = spec.partition(":")
    made = _GENERATORS.get(name)
    if made is None or not (argument or name == "llamacpp"):
        raise ConfigError(
            "A generating model is named by ollama:NAME, llamacpp:FILE, transformers:FOLDER or transformers:HUB_ID; "
            f"found {spec!r}."
        )
    return made(argument)


class OllamaGenerator:
    """A model in an Ollama server.

    Args:
        model: its name there.
        host: the server's address; None takes OLLAMA_HOST, else 127.0.0.1:11434.
    """

    def __init__(self, model: str, host: str | None = None) -> None:
        require("ollama", extra="ollama", purpose="Asking an Ollama server")
        from smolcls.data._ollama_writer import WritingServer

        self._model = model
        self._server = WritingServer(host, _OLLAMA_TIMEOUT)

    def generate(self, prompt: str, seed: int, max_tokens: int) -> str:
        """An answer to a user's message."""
        options = {"seed": seed, "num_predict": max_tokens, "num_ctx": CONTEXT}
        return self._server.write(self._model, prompt, {**options, "temperature": TEMPERATURE, "top_p": TOP_P})

    def close(self) -> None:
        """Close the connections to the server."""
        self._server.close()


class LlamaCppGenerator:
    """A GGUF model through llama.cpp.

    Args:
        model: path of a GGUF file; "" is the bundled base.
    """

    def __init__(self, model: str | Path = "") -> None:
        path = user_path(model) if model else build.bundled_base()
        scan(path)
        native.forks.computing_here()
        native.forget_log()
        try:
            self._llama = native.llama().Llama(model_path=str(path), n_ctx=CONTEXT, verbose=False)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"llama.cpp cannot load {path}: {error} ({native.recent_log()}).") from error

    def generate(self, prompt: str, seed: int, max_tokens: int) -> str:
        """An answer to a user's message."""
        native.forks.computing_here()
        try:
            answer = self._llama.create_chat_completion(
                [{"role": "user", "content": prompt}],
                seed=seed,
                max_tokens=max_tokens,
                temperature=TEMPERATURE,
                top_p=TOP_P,
            )
        except (ValueError, RuntimeError) as error:
            raise BackendError(f"llama.cpp could not write: {error}.") from error
        return answer["choices"][0]["message"]["content"] or ""

    def close(self) -> None:
        """Free the model."""
        self._llama.close()


class TransformersGenerator:
    """A model through transformers: a folder it saved, or a Hub id.

    Args:
        model: the folder or Hub id; its tokenizer needs a chat template.
    """

    def __init__(self, model: str | Path) -> None:
        self._torch = require("torch", extra="transformers", purpose="Writing with a model of transformers")
        transformers = require("transformers", extra="transformers", purpose="Writing with a model of transformers")
        device = "cuda" if self._torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(model))
            self._model = transformers.AutoModelForCausalLM.from_pretrained(str(model), dtype="auto").to(device).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"transformers cannot load {model}: {_first_line(error)}") from error
        if self._tokenizer.chat_template is None:
            raise ModelError(f"{model} has no chat template: expected a model that was trained to answer messages.")

    def generate(self, prompt: str, seed: int, max_tokens: int) -> str:
        """An answer to a user's message."""
        messages = [{"role": "user", "content": prompt}]
        try:
            asked = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(self._model.device)
            with self._torch.random.fork_rng(), self._torch.inference_mode():
                self._torch.manual_seed(seed)
                written = self._model.generate(
                    **asked, max_new_tokens=max_tokens, do_sample=True, temperature=TEMPERATURE, top_p=TOP_P
                )
        except (ValueError, RuntimeError) as error:
            raise BackendError(f"transformers could not write: {_first_line(error)}") from error
        answer: Any = self._tokenizer.decode(written[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        return str(answer)

    def close(self) -> None:
        """Let go of the model."""
        del self._model


_GENERATORS: dict[str, Callable[[str], Generator]] = {
    "ollama": OllamaGenerator,
    "llamacpp": LlamaCppGenerator,
    "transformers": TransformersGenerator,
}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
