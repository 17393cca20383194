"""GGUF models through llama.cpp, in this process; the native calls are `_llamacpp_engine`'s concern."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from smolcls import prompt
from smolcls.backends._llamacpp_engine import Engine
from smolcls.backends._llamacpp_raw import RawRuntime
from smolcls.backends._model_file import ModelFileClassifier
from smolcls.scan import scan


class LlamaCppClassifier(ModelFileClassifier):
    """A GGUF model through llama.cpp."""

    name: ClassVar[str] = "llamacpp"
    format = "gguf"
    extra = "local"
    # gguf and filelock are needed for the embedded default alone, and come with the extra.
    packages: ClassVar = {"llama_cpp": "llama-cpp-python", "numpy": "numpy", "gguf": "gguf", "filelock": "filelock"}
    _engine: Engine

    def prompt_tokens(self, text: str) -> list[int]:
        """Token ids that a call evaluates for a text: the text and what follows it; the prefix is in the cache."""
        [tail] = self._engine.tails([prompt.render(self.task, text)])
        return list(tail)

    def raw_runtime(self) -> RawRuntime:
        """llama.cpp on the same file with the same threads, and nothing of smolcls around it."""
        return RawRuntime(self.model_path, self._threads)

    def model_description(self) -> str:
        """The model in llama.cpp's words: family, size and quantisation."""
        return self._engine.description

    def _load(self) -> Engine:
        return Engine(self.model_path, self.task, self._threads)

    def _find(self, model: str | Path | None) -> Path:
        path = super()._find(model)
        scan(path)
        return path
