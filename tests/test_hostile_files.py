"""Files that anyone may have made: each is read, or refused with one error that says why; nothing in them is run."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from contract import write_tiny_folder, write_tiny_gguf
from tiny import HAS_LLAMA_CPP, HAS_ONNX, TORCH, run, write_adapter, write_tiny_onnx

import smolcls
from smolcls import Calibration, ConfigError, InputError, ModelError, SmolclsError, Task
from smolcls.data.rows import scan_rows
from smolcls.evaluation.compare import read_answers
from smolcls.settings import load_router

EXPORT = pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs the extra llamacpp")
ONNX = pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx")
#: What JSON can hold in place of any value, and more than a float or a machine's word can.
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, "x", "\0", "\ud800", "", [], {}, [[]], {"a": 1}, float("inf"), float("nan"), 10**400, 2**63,
)  # fmt: skip
TASK_TOML = 'name = "own"\ninstruction = "Sort it."\nmax_text_bytes = 200\n[labels]\nspam = "bad"\nham = ""\n'
ROUTER_TOML = 'min_confidence = 0.1\n[[stage]]\nuse = "rules"\nthreshold = 0.9\n[[stage]]\nuse = "fake:prompt"\n'
RULES_TOML = (
    '[[rule]]\nname = "a"\nlabel = "command"\npattern = "^/"\nwhy = "a slash"\ncounts = { command = 9, prompt = 1 }\n'
    '[[rule]]\nname = "b"\nlabel = "prompt"\nwhy = "the rest"\ncounts = { prompt = 9 }\n'
)
ROW = '{"text": "hi", "label": "prompt", "family": "f"}\n{"messages": [{"role": "user", "content": "x"}]}\n'
CALIBRATION = {
    "format": "smolcls-calibration-1", "temperature": 2.0, "task": "a", "model": "", "backend": "x", "rows": 100,
    "nll_before": 0.1, "nll_after": 0.1,
}  # fmt: skip
REPORT = {
    "format": "smolcls-report-1", "rows": [{"text": "hi", "label": "prompt", "answers": {"rules": ["prompt", 0.9]}}]
}  # fmt: skip


def outcome(read: Callable[[], object]) -> str:
    """`read`, or the name of the error of this library that it was; any other error is the test's failure."""
    try:
        read()
    except SmolclsError as error:
        # Less than this cannot say what was expected and what was found.
        return type(error).__name__ if len(str(error)) > 30 else f"bare: {error}"
    return "read"


def mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Cut, patched, doubled and torn; seeded."""
    source = random.Random(seed)
    marks = (b"\0", b"\xff\xfe", b'"', b"[" * 3000, b"{", b"9" * 5000, b"\n", b"1e999", b"]", b"=", b"\xed\xa0\x80")
    for _ in range(count):
        place, other = sorted(source.choices(range(len(content) + 1), k=2))
        patch = source.choice((*marks, source.randbytes(3)))
        yield source.choice(
            (
                content[:place],
                content[:place] + patch + content[place:],
                content[:place] + patch + content[place + len(patch) :],
                content[:place] + content[other:],
                content + content[place:other],
            )
        )


READERS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "task": ("task.toml", TASK_TOML, Task.load),
    "router": ("smolcls.toml", ROUTER_TOML, load_router),
    "rules": ("rules.toml", RULES_TOML, lambda path: smolcls.load(f"rules:{path}").classify("/x")),
    "rows": ("rows.jsonl", ROW, lambda path: list(scan_rows(path))),
    "calibration": ("calibration.json", json.dumps(CALIBRATION), Calibration.load),
    "report": ("report.json", json.dumps(REPORT), read_answers),
}


@pytest.mark.parametrize("kind", READERS)
def test_mutated_files_of_text_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    name, content, read = READERS[kind]
    path, began = tmp_path / name, time.process_time()
    seen = set()
    for mutated in mutations(content.encode(), 150, 3):
        path.write_bytes(mutated)
        seen.add(outcome(lambda: read(path)))
    assert seen <= {"read", "ConfigError", "InputError"}
    assert len(seen) >= (1 if kind == "rows" else 2)
    assert time.process_time() - began < 30


@pytest.mark.parametrize("kind", ["task", "router", "rules"])
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x = " + "[" * 100_000, "its values are nested too deeply"),
        ("x = " + "9" * 5000, "Exceeds the limit"),
        ("x = 0000-99-99", "TOML"),
    ],
    ids=["nested", "digits", "date"],
)
def test_toml_that_pythons_reader_cannot_hold(tmp_path: Path, kind: str, line: str, reason: str) -> None:
    name, content, read = READERS[kind]
    (tmp_path / name).write_text(f"{line}\n{content}")
    with pytest.raises(ConfigError, match=reason) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["\0", "a" * 5000, "\ud800"], ids=["nul", "long", "surrogate"])
@pytest.mark.parametrize(
    "backend",
    ["rules", "linear", "llamacpp", pytest.param("onnx", marks=ONNX), pytest.param("transformers", marks=TORCH)],
)
def test_names_that_no_file_can_have(backend: str, name: str) -> None:
    if backend == "llamacpp" and not HAS_LLAMA_CPP:
        pytest.skip("needs the extra llamacpp")
    with pytest.raises((ConfigError, ModelError)):
        smolcls.load(f"{backend}:{name}")


@pytest.mark.parametrize("key", CALIBRATION)
def test_a_calibration_with_any_value(tmp_path: Path, key: str) -> None:
    path = tmp_path / "calibration.json"
    for value in VALUES:
        path.write_text(json.dumps({**CALIBRATION, key: value}))
        assert outcome(lambda: Calibration.load(path)) in {"read", "ConfigError"}


@pytest.mark.parametrize("key", ["format", "rows"])
def test_a_report_with_any_value(tmp_path: Path, key: str) -> None:
    path = tmp_path / "report.json"
    for value in VALUES:
        path.write_text(json.dumps({**REPORT, key: value}))
        assert outcome(lambda: read_answers(path)) in {"read", "InputError"}
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"report\.json is not a report that smolcls wrote \(its values are nested"):
        read_answers(path)


def with_header(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A safetensors file with another header."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize("key", ["format", "labels", "documents", "calibration"])
def test_a_linear_model_with_any_metadata(tmp_path: Path, key: str) -> None:
    whole = Path(str(files("smolcls") / "models/three-type-linear/model.safetensors")).read_bytes()
    path = tmp_path / "model.safetensors"
    odd = ('["command", "prompt", 3]', '["command", "prompt", null]', "1e9", "9" * 400, "9" * 5000, "[" * 100_000)
    for value in (*VALUES, *odd):
        path.write_bytes(with_header(whole, lambda header: header["__metadata__"].update({key: value})))  # noqa: B023
        found = outcome(lambda: smolcls.load(f"linear:{path}").classify("hi"))
        assert found == "ModelError" or (found == "ConfigError" and key == "labels"), value


@EXPORT
class TestAdapter:
    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        return write_tiny_folder(tmp_path / "base")

    @pytest.fixture
    def adapter(self, tmp_path: Path, base: Path) -> Path:
        return write_adapter(tmp_path / "adapter", base)

    def outcomes(self, base: Path, adapter: Path, tmp_path: Path) -> str:
        from smolcls.export.gguf import open_source, write_f16
        from smolcls.export.lora import LoraAdapter

        return outcome(lambda: write_f16(open_source(base), tmp_path / "out.gguf", adapter=LoraAdapter(adapter)))

    @pytest.mark.parametrize("key", ["peft_type", "r", "lora_alpha", "bias", "init_lora_weights"])
    def test_any_setting(self, base: Path, adapter: Path, tmp_path: Path, key: str) -> None:
        path = adapter / "adapter_config.json"
        whole = json.loads(path.read_text())
        for value in VALUES:
            path.write_text(json.dumps({**whole, key: value}))
            assert self.outcomes(base, adapter, tmp_path) in {"read", "ModelError"}

    @pytest.mark.parametrize("key", ["dtype", "shape", "data_offsets"])
    def test_any_header(self, base: Path, adapter: Path, tmp_path: Path, key: str) -> None:
        path = adapter / "adapter_model.safetensors"
        whole = path.read_bytes()
        pairs = ([1.5, 64], [float("inf"), 1], [2**70, 64], [2**32, 2**32], ["4", "64"], [True, 64], [0, 1.5], [9, 1])
        for value in (*VALUES, *pairs):
            path.write_bytes(with_header(whole, lambda header: next(iter(header.values())).update({key: value})))  # noqa: B023
            assert self.outcomes(base, adapter, tmp_path) == "ModelError", value

    @pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "", "\0", "base_model.model...lora_A.weight"])
    def test_names_like_paths_are_names(self, base: Path, adapter: Path, tmp_path: Path, name: str) -> None:
        path = adapter / "adapter_model.safetensors"
        path.write_bytes(
            with_header(path.read_bytes(), lambda header: header.update({name: header.pop(next(iter(header)))}))
        )
        assert self.outcomes(base, adapter, tmp_path) == "ModelError"
        assert sorted(item.name for item in tmp_path.iterdir()) == ["adapter", "base"]

    @pytest.mark.parametrize("weights", ["adapter_model.bin", "adapter_model.pt"])
    def test_a_pickle_is_not_read(self, base: Path, adapter: Path, weights: str) -> None:
        from smolcls.export.lora import LoraAdapter

        (adapter / "adapter_model.safetensors").rename(adapter / weights)
        with pytest.raises(ModelError, match=r"adapter_model\.safetensors is not a whole safetensors file: .*No such"):
            LoraAdapter(adapter)

    def test_sizes_that_gguf_cannot_hold(self, base: Path, adapter: Path, tmp_path: Path) -> None:
        path = base / "config.json"
        whole = json.loads(path.read_text())
        for key in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size", "max_position_embeddings"):
            for value in (10**400, 2**63, 2**31):
                path.write_text(json.dumps({**whole, key: value}))
                assert self.outcomes(base, adapter, tmp_path) == "ModelError"


@EXPORT
def test_a_mutated_gguf_is_a_base_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smolcls.export.gguf import open_source, write_f16

    monkeypatch.setattr(os, "fsync", lambda _: None)
    whole = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    end, path, source = whole.rindex(b"output_norm.weight"), tmp_path / "mutated.gguf", random.Random(3)
    seen = set()
    for _ in range(40):
        mutated = bytearray(whole)
        place = source.randrange(4, end)
        patch = source.choice((source.randbytes(1), b"\xff" * 8, b"\0" * 4, source.randbytes(4)))
        mutated[place : place + len(patch)] = patch
        path.write_bytes(mutated)
        seen.add(outcome(lambda: write_f16(open_source(path), tmp_path / "out.gguf")))
    assert seen == {"read", "ModelError"}


USE_ONNX = """
    import sys, smolcls
    from pathlib import Path

    for path in sorted(Path(sys.argv[1]).glob("mutated-*.onnx")):
        try:
            with smolcls.load(f"onnx:{path}", threads=1) as made:
                made.classify("fix it")
            print("read")
        except (smolcls.ModelError, smolcls.BackendError) as error:
            print(type(error).__name__, error)
"""


@ONNX
def test_a_mutated_onnx_file_is_a_model_or_refused(tmp_path: Path) -> None:
    """In a process of its own, which must not end early nor print anything of ONNX Runtime's."""
    whole, source = write_tiny_onnx(tmp_path / "tiny.onnx").read_bytes(), random.Random(3)
    metadata = whole.rindex(b"first_past")
    for number in range(90):
        mutated = bytearray(whole)
        # The graph's nodes stand at its beginning, the metadata at the end, and weights between them.
        place = source.choice((source.randrange(20_000), source.randrange(metadata, len(whole))))
        patch = source.choice((source.randbytes(1), b"\xff" * 8, b"\0" * 4, source.randbytes(4)))
        mutated[place : place + len(patch)] = patch
        (tmp_path / f"mutated-{number:02}.onnx").write_bytes(mutated[:place] if number % 9 == 0 else mutated)
    ended = run(USE_ONNX, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    said = ended.stdout.splitlines()
    assert len(said) == 90
    assert {line.partition(" ")[0] for line in said} >= {"read", "ModelError"}
    assert all("Build it again" in line for line in said if line.startswith("ModelError"))


@ONNX
@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"GGUF" + bytes(100), b"not a model", b"\x08\x09"])
def test_what_is_no_onnx_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx.*[Bb]uild .*"):
        smolcls.load(f"onnx:{path}")


RUNS_CODE = "open('ran', 'w').close()\nclass X: pass\n"


@TORCH
def test_nothing_in_a_models_folder_is_run(tmp_path: Path) -> None:
    """Code beside the weights stays text, whether `config.json` names it for a type that is known or not."""
    folder = write_tiny_folder(tmp_path / "model")
    for name in ("modeling_x.py", "configuration_x.py", "tokenization_x.py", "__init__.py", "sitecustomize.py"):
        (folder / name).write_text(RUNS_CODE)
    config = json.loads((folder / "config.json").read_text())
    named = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X", "AutoTokenizer": "x.X"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": named}))
    with smolcls.load(f"transformers:{folder}", device="cpu") as made:
        assert made.classify("hi").label is not None
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": named, "model_type": "own"}))
    with pytest.raises(ModelError, match=r"transformers cannot load .*Expected a folder that transformers saved"):
        smolcls.load(f"transformers:{folder}", device="cpu")
    assert not Path("ran").exists()
    assert not [name for name in sys.modules if name.endswith(("modeling_x", "configuration_x"))]


@EXPORT
def test_a_folder_of_pickles_is_no_base(tmp_path: Path) -> None:
    from smolcls.export.gguf import open_source

    folder = write_tiny_folder(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"model has no safetensors file\. Expected the weights of a model saved by"):
        open_source(folder)


OFFLINE = """
    import socket, sys
    def refuse(*_, **__):
        raise AssertionError("a connection was asked for")
    socket.socket.connect = socket.socket.connect_ex = refuse
    socket.create_connection = socket.getaddrinfo = refuse
    import smolcls
    smolcls.classify("/help")
    for spec in sys.argv[1:]:
        with smolcls.load(spec) as made:
            assert made.classify("what is recursion?").label is not None
    print("done")
"""


def test_nothing_is_downloaded_that_was_not_asked_for(tmp_path: Path) -> None:
    specs = ["rules", "linear", "fake"]
    if HAS_LLAMA_CPP:
        specs.append(f"llamacpp:{write_tiny_gguf(tmp_path / 'tiny.gguf')}")
        if TORCH.args[0] is False:
            specs.append(f"transformers:{tmp_path / 'tiny'}")
    ended = run(OFFLINE, *specs, SMOLCLS_CHAIN="rules,linear,rules")
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
