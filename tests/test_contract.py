"""Every backend that is usable here keeps the contract.

llama.cpp, ONNX Runtime and transformers are held to it twice: with a tiny random model, quick enough for many
texts, and with the real one.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, ClassVar

import pytest
from contract import ClassifierContract, load_tiny, write_tiny_folder, write_tiny_gguf
from tiny import HAS_ONNX, write_tiny_onnx

import smolcls
from smolcls import Classifier, ConfidenceRouter, Stage, build

LLAMA_CPP = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None or importlib.util.find_spec("gguf") is None,
    reason="needs the extra llamacpp",
)
TRANSFORMERS = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None,
    reason="needs the extra transformers",
)
ONNX = pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx")
BUNDLED = pytest.mark.skipif(not build.has_bundled_base(), reason="needs the extra local")


class TestFake(ClassifierContract):
    backend: ClassVar[str] = "fake"
    tolerance: ClassVar[float] = 0.0
    shortens: ClassVar[bool] = False
    examples: ClassVar[int] = 300

    @classmethod
    def make(cls, **options: Any) -> Classifier:
        return smolcls.load("fake", **options)


class TestRules(ClassifierContract):
    backend: ClassVar[str] = "rules"
    tolerance: ClassVar[float] = 0.0
    examples: ClassVar[int] = 300

    @classmethod
    def make(cls, **options: Any) -> Classifier:
        return smolcls.load("rules", **options)


@LLAMA_CPP
class TestLlamaCpp(ClassifierContract):
    backend: ClassVar[str] = "llamacpp"
    tolerance: ClassVar[float] = 5e-3  # in F16 the shape of a batch moves random weights' numbers so much
    examples: ClassVar[int] = 200
    path: ClassVar[Path]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.path = write_tiny_gguf(tmp_path_factory.mktemp("llamacpp") / "tiny.gguf")

    @classmethod
    def make(cls, **options: Any) -> Classifier:
        return load_tiny(cls.path, **options)


@LLAMA_CPP
@BUNDLED
@pytest.mark.model
class TestLlamaCppBundled(ClassifierContract):
    backend: ClassVar[str] = "llamacpp"
    tolerance: ClassVar[float] = 0.06  # the shape of a batch moves a quantised model's numbers so much
    examples: ClassVar[int] = 4

    @classmethod
    def make(cls, **options: Any) -> Classifier:
        return smolcls.load("llamacpp", **options)


@ONNX
class TestOnnx(ClassifierContract):
    backend: ClassVar[str] = "onnx"
    tolerance: ClassVar[float] = 0.0  # a batch is a pass a text
    examples: ClassVar[int] = 200
    path: ClassVar[Path]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.path = write_tiny_onnx(tmp_path_factory.mktemp("onnx") / "tiny.onnx")

    @classmethod
    def make(cls, **options: Any) -> Classifier:
        return smolcls.load(f"onnx:{cls.path}", threads=1, **options)


@ONNX
@BUNDLED
@pytest.mark.model
class TestOnnxBundled(ClassifierContract):
    backend: ClassVar[str] = "onnx"
    tolerance: ClassVar[float] = 1e-6
    examples: ClassVar[int] = 4

    @classmethod
    def make(cls, **options: Any) -> Classifier:
        return smolcls.load("onnx", **options)


@TRANSFORMERS
class TestTransformers(ClassifierContract):
    backend: ClassVar[str] = "transformers"
    tolerance: ClassVar[float] = 1e-4
    examples: ClassVar[int] = 60
    path: ClassVar[Path]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.path = write_tiny_folder(tmp_path_factory.mktemp("transformers") / "tiny")

    @classmethod
    def make(cls, **options: Any) -> Classifier:
        return smolcls.load(f"transformers:{cls.path}", device="cpu", **options)


@TRANSFORMERS
@BUNDLED
@pytest.mark.model
class TestTransformersBundled(ClassifierContract):
    backend: ClassVar[str] = "transformers"
    tolerance: ClassVar[float] = 1e-4
    slow: ClassVar[bool] = True
    examples: ClassVar[int] = 3

    @classmethod
    def make(cls, **options: Any) -> Classifier:
        return smolcls.load(f"transformers:{build.bundled_base()}", device="cpu", **options)


class TestRouter(ClassifierContract):
    """A router is a classifier too; its predictions carry the name of the backend that answered."""

    backend: ClassVar[str] = "fake"
    tolerance: ClassVar[float] = 0.0
    shortens: ClassVar[bool] = False

    @classmethod
    def make(cls, **options: Any) -> Classifier:
        return ConfidenceRouter([Stage("fake:workflow", threshold=0.999), Stage("fake:command")], **options)

    def test_an_unknown_option_is_refused_with_the_known_ones(self) -> None:
        """It is made by its class and not by a name, so Python itself refuses."""
        with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
            self.make(colour="red")
