"""The transformers backend: GGUF files, calibration, and what it says when torch or a package fails."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from contract import write_tiny_folder, write_tiny_gguf

from smolcls import BackendError, ConfigError, MissingExtraError, ModelError, Task
from smolcls.calibration import Calibration

torch = pytest.importorskip("torch", reason="needs the extra transformers")
transformers = pytest.importorskip("transformers", reason="needs the extra transformers")

from smolcls.backends import _transformers_loading as loading  # noqa: E402
from smolcls.backends.transformers import TransformersClassifier  # noqa: E402

needs_gguf = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("gguf", "accelerate")), reason="needs gguf and accelerate"
)
CARDS = Task(["card", "card_lost", "card_stolen", "cash", "refund"], name="cards", instruction="What is it about?")
TEXTS = [
    *("/help", "hi", "what is recursion?", "rename getUser to fetchUser everywhere", "<|im_end|>", "日本語 ٣٤ 12"),
    *("x" * size for size in (1, 7, 8, 30, 100, 101, 333, 900, 2000)),
]


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """A model folder that a test may damage."""
    return write_tiny_folder(tmp_path / "own")


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Iterator[TransformersClassifier]:
    with TransformersClassifier(folder, device="cpu") as made:
        yield made


# GGUF files


@needs_gguf
def test_a_gguf_file_answers_as_the_folder_it_was_made_of(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    with (
        TransformersClassifier(path, device="cpu") as made,
        TransformersClassifier(path.with_suffix(""), device="cpu") as source,
    ):
        for text in (*TEXTS, "٣٤٣٤ ①② 1212", "x²³"):
            assert made.tokenize(text) == source.tokenize(text)
        for one, other in zip(made.predict_proba(TEXTS), source.predict_proba(TEXTS), strict=True):
            assert one == pytest.approx(other, abs=0.01)


@needs_gguf
def test_a_gguf_file_that_is_split_in_an_unknown_way_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes().replace(b"smollm", b"foobar", 1))
    with pytest.raises(
        ModelError, match="splits texts by the pre-tokenizer 'foobar', which transformers does not know"
    ):
        TransformersClassifier(path, device="cpu")


@needs_gguf
@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_package_that_a_gguf_file_needs_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingExtraError, match=f"Loading a GGUF file through transformers needs the package `{package}`"
    ):
        TransformersClassifier(path, device="cpu")


@needs_gguf
def test_loading_is_silent_and_leaves_settings_as_they_were(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    hub = pytest.importorskip("huggingface_hub.utils")
    own = transformers.utils.logging
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    level = own.get_verbosity()
    for wanted, bars in ((own.INFO, True), (own.WARNING, False)):
        own.set_verbosity(wanted)
        (own.enable_progress_bar if bars else own.disable_progress_bar)()
        for model in (folder, path):
            TransformersClassifier(model, device="cpu").close()
        assert own.get_verbosity() == wanted
        assert own.is_progress_bar_enabled() is bars
        assert hub.are_progress_bars_disabled() is not bars
    own.set_verbosity(level)
    own.enable_progress_bar()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert caplog.records == []


# Calibration


def _calibration(backend_name: str, task: Task, temperature: float = 4.0) -> Calibration:
    return Calibration(temperature, task.fingerprint, "", backend_name, 100, 0.5, 0.4)


def test_the_folders_own_calibration_is_taken_where_it_belongs_to_the_model(
    own_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = Task.load("three-type")
    with TransformersClassifier(own_folder, device="cpu") as made:
        plain = made.classify("hi")
        model = made.model_fingerprint()
    assert plain.calibrated is False
    own = replace(_calibration("transformers", task), model=model)
    for other in (_calibration("llamacpp", task), _calibration("transformers", CARDS), replace(own, model="0" * 16)):
        other.save(own_folder / "calibration.json")
        caplog.clear()
        with TransformersClassifier(own_folder, device="cpu") as made:
            assert made.classify("hi").probabilities == plain.probabilities
        [record] = caplog.records
        assert (record.name, record.levelname) == ("smolcls", "WARNING")
        assert "calibration.json was fitted for another" in record.getMessage()
    own.save(own_folder / "calibration.json")
    with TransformersClassifier(own_folder, device="cpu") as made:
        softened = made.classify("hi")
    assert softened.calibrated is True
    assert softened.confidence < plain.confidence
    with TransformersClassifier(own_folder, device="cpu", calibration=_calibration("transformers", task, 1.0)) as made:
        assert made.classify("hi").confidence == pytest.approx(plain.confidence)


def test_a_calibration_that_is_named_has_to_belong_to_the_model(own_folder: Path) -> None:
    fitted = _calibration("transformers", Task.load("three-type"))
    with pytest.raises(ConfigError, match="The calibration was fitted for another task"):
        TransformersClassifier(own_folder, task=CARDS, device="cpu", calibration=fitted)
    with pytest.raises(ConfigError, match="The calibration was fitted for another model"):
        TransformersClassifier(own_folder, device="cpu", calibration=replace(fitted, model="0" * 16))


# Failures


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "device 'cpu' is too small: CUDA out of",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nmore"),
            "is too small: .*: you tried. Close",
        ),
        (MemoryError(), "is too small: MemoryError. Close other programs that use it, try dtype='bfloat16', or take a"),
        (
            RuntimeError("kernel image is missing"),
            "torch could not run the model on device 'cpu': kernel image is missing",
        ),
    ],
)
def test_torchs_failures_are_errors_of_smolcls(folder: Path, error: Exception, message: str) -> None:
    with TransformersClassifier(folder, device="cpu") as made:

        def fail(_module: Any, _inputs: Any) -> None:
            raise error

        hook = made._engine._model.register_forward_pre_hook(fail)
        with pytest.raises(BackendError, match=message):
            made.classify("hi")
        hook.remove()
        assert made.classify("hi").label is not None


def test_a_model_that_does_not_fit_says_what_helps(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(BackendError, match=r"The memory of device 'cpu' is too small: .* take a smaller model"):
        TransformersClassifier(folder, device="cpu")


def test_a_package_that_a_model_needs_is_named(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ImportError("This model requires `foo`. Run pip install foo")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(MissingExtraError, match="needs a package that is not installed: This model requires `foo`"):
        TransformersClassifier(folder, device="cpu")


def test_logits_that_are_no_numbers_are_an_error(folder: Path) -> None:
    with TransformersClassifier(folder, device="cpu") as made:
        with torch.no_grad():
            made._engine._model.model.norm.weight.fill_(math.nan)
        with pytest.raises(
            BackendError, match="The model gave logits that are not numbers; its weights may be damaged"
        ):
            made.classify("hi")


def test_a_forked_process_is_told_rather_than_left_hanging(
    monkeypatch: pytest.MonkeyPatch, classifier: TransformersClassifier, folder: Path
) -> None:
    monkeypatch.setattr(loading.forks, "_process", os.getpid() + 1)
    with pytest.raises(
        BackendError, match=r"torch cannot compute in a process that was forked after it was used. Start"
    ):
        classifier.classify("hi")
    with pytest.raises(BackendError, match="or classify for the first time after the fork"):
        TransformersClassifier(folder, device="cpu")


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, folder: Path, package: str
) -> None:
    line = r'pip install "smolcls\[transformers\]"'
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=f"The transformers backend needs the package `{package}`, .*{line}"):
        TransformersClassifier(folder, device="cpu")
    reason = TransformersClassifier.why_unavailable()
    assert reason == f'{package} is not installed; pip install "smolcls[transformers]"'


def test_it_is_available_here() -> None:
    assert TransformersClassifier.why_unavailable() is None


def test_asking_whether_it_is_available_imports_nothing() -> None:
    code = (
        "import sys\n"
        "from smolcls.backends.transformers import TransformersClassifier\n"
        "assert TransformersClassifier.why_unavailable() is None\n"
        "assert not {'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules), sorted(sys.modules)\n"
    )
    with contextlib.chdir(Path(__file__).parent):
        subprocess.run([sys.executable, "-c", code], check=True)
