"""ONNX models through ONNX Runtime, in this process; the session is `_onnx_engine`'s concern."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from smolcls import prompt
from smolcls.backends._model_file import ModelFileClassifier
from smolcls.backends._onnx_engine import Engine
from smolcls.errors import require


class OnnxClassifier(ModelFileClassifier):
    """An ONNX model that smolcls has built, through ONNX Runtime on the CPU."""

    name: ClassVar[str] = "onnx"
    format = "onnx"
    extra = "onnx"
    # onnx, gguf and filelock are needed for the embedded default alone, and come with the extra.
    packages: ClassVar = {
        "onnxruntime": "onnxruntime", "tokenizers": "tokenizers", "numpy": "numpy", "onnx": "onnx", "gguf": "gguf",
        "filelock": "filelock",
    }  # fmt: skip
    _engine: Engine

    def prompt_tokens(self, text: str) -> list[int]:
        """Token ids that a call evaluates for a text: it, what follows it, and the branches of the labels."""
        return self._engine.evaluated(prompt.render(self.task, text))

    def model_description(self) -> str:
        """The model's family, size and quantisation."""
        return self._engine.description

    def _load(self) -> Engine:
        return Engine(self.model_path, self.task, self._threads)

    def _find(self, model: str | Path | None) -> Path:
        for package in ("numpy", "tokenizers", "onnxruntime"):  # what is missing is said before a build
            require(package, extra="onnx", purpose="Running an ONNX model")
        return super()._find(model)
