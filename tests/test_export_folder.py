"""Model folders that cannot be exported, and safetensors files that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from contract import load_tiny, write_safetensors, write_tiny_folder
from tiny import (
    HAS_LLAMA_CPP,
    edit_json,
    replace_tensors,
)

from smolcls import ModelError
from smolcls.scan import scan

if not HAS_LLAMA_CPP:
    pytest.skip("needs the extra llamacpp", allow_module_level=True)

import numpy as np

from smolcls.export.folder import FolderSource
from smolcls.export.gguf import open_source, write_f16
from smolcls.export.safetensors import SafetensorsFile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_folder(tmp_path / "model")


def test_weights_that_f16_cannot_hold(folder: Path, tmp_path: Path) -> None:
    file = SafetensorsFile(folder / "model.safetensors")
    tensors = {name: file.read(name) for name in file.names}
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 70_000.0
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(ModelError, match=r"The weight blk\.0\.ffn_up\.weight has values that F16 cannot hold"):
        write_f16(open_source(folder), tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "qwen2"}, "holds a model of type 'qwen2'. The GGUF export knows the Llama family"),
        ({"model_type": None}, "holds a model of type None"),
        ({"hidden_act": "gelu"}, "the activation 'gelu' and the rope scaling 'default'"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0}}, "the rope scaling 'llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "the rope scaling 'linear'"),
        ({"rope_parameters": "default"}, "expected an object of rope parameters; found 'default'"),
        ({"num_attention_heads": None}, "config.json: num_attention_heads must be a whole number; found None"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number; found 0"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers must be a whole number; found '2'"),
        ({"num_hidden_layers": 3}, "lacks the tensor model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "has the tensor model.layers.1.input_layernorm.weight, which the GGUF export would"),
        ({"tie_word_embeddings": False}, "lacks the tensor lm_head.weight"),
        ({"rms_norm_eps": None}, "rms_norm_eps must be a number above 0; found None"),
        ({"vocab_size": 100}, "tokenizer.json is damaged, or larger than the model"),
    ],
)
def test_a_config_that_cannot_be_exported(folder: Path, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=reason):
        write_f16(open_source(folder), tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_tensors_that_would_be_left_out(folder: Path) -> None:
    replace_tensors(folder, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}))
    with pytest.raises(ModelError, match=r"has the tensor model\.layers\.0\.self_attn\.q_proj\.bias, which the GGUF"):
        list(open_source(folder).tensors())


def test_a_tied_head_and_old_buffers_are_left_out(folder: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)

    replace_tensors(folder, change)
    assert len(list(open_source(folder).tensors())) == 20


def test_files_that_are_missing_or_damaged(folder: Path, tmp_path: Path) -> None:
    for name, reason in (
        ("tokenizer.json", "tokenizer.json cannot be read: .*Expected a model folder saved by transformers"),
        ("model.safetensors", "has no safetensors file"),
        ("config.json", "config.json cannot be read"),
    ):
        (folder / name).unlink()
        with pytest.raises(ModelError, match=reason):
            write_f16(open_source(folder), tmp_path / "model.gguf")
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json cannot be read: it is not a JSON object"):
        open_source(folder)


def test_an_adapters_folder_is_no_model(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"has no safetensors file\. Expected the weights of a model"):
        FolderSource(folder)


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def sequence(first: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [first, LEVEL]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"pre_tokenizer": LEVEL}, "gpt-2"),
        ({"pre_tokenizer": {**LEVEL, "add_prefix_space": True}}, "which the GGUF export does not know"),
        ({"pre_tokenizer": {**LEVEL, "use_regex": False}}, "which the GGUF export does not know"),
        ({"normalizer": {"type": "NFC"}}, "prepares texts by {\"type\": \"NFC\"}"),
        ({"pre_tokenizer": sequence({"type": "Split"})}, '"Split"'),
        (
            {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": False})},
            "which the GGUF export does not know",
        ),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "has a tokenizer of type 'BPE'; expected byte-level BPE"),
        ({"pre_tokenizer": None}, "expected byte-level BPE"),
        ({"model": {"type": "Unigram", "vocab": []}}, "has a tokenizer of type 'Unigram'; expected byte-level BPE"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}}}, "larger than the model: KeyError"),
        ({"model": None}, "tokenizer.json is damaged"),
        ({"added_tokens": [{"id": 9999, "content": "x", "special": True}]}, "larger than the model: IndexError"),
        ({"added_tokens": [{"id": 1}]}, "tokenizer.json is damaged"),
    ],
)  # fmt: skip
def test_tokenizers(folder: Path, tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    edit_json(folder / "tokenizer.json", **changes)
    if expected == "gpt-2":
        write_f16(open_source(folder), tmp_path / "model.gguf")
        assert scan(tmp_path / "model.gguf").metadata["tokenizer.ggml.pre"] == expected
        return
    with pytest.raises(ModelError, match=expected):
        write_f16(open_source(folder), tmp_path / "model.gguf")


def test_ids_without_a_token_become_unused_ones(folder: Path, tmp_path: Path) -> None:
    def widen(tensors: dict[str, Any]) -> None:
        rows = tensors["model.embed_tokens.weight"]
        tensors["model.embed_tokens.weight"] = np.vstack([rows, np.zeros((3, 64), np.float32)])

    replace_tensors(folder, widen)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    edit_json(folder / "config.json", vocab_size=size + 3)
    write_f16(open_source(folder), tmp_path / "model.gguf")
    with load_tiny(tmp_path / "model.gguf") as classifier:
        assert classifier.classify("hi").label is not None


@pytest.mark.parametrize("kind", ["<f8", "<f4", "<f2"])
def test_safetensors_of_every_float_type(tmp_path: Path, kind: str) -> None:
    array = np.array([[1.5, -2.25], [0.0, 3e-3]], dtype=kind)
    write_safetensors(tmp_path / "file.safetensors", {"a": np.zeros(3, np.float32), "w": array})
    file = SafetensorsFile(tmp_path / "file.safetensors")
    assert file.names == ["a", "w"]
    assert file.shape("w") == (2, 2)
    assert (file.read("w") == array.astype(np.float32)).all()


def test_bfloat16_without_torch(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 3.140625, 1e30, -0.0], np.float32)
    write_safetensors(tmp_path / "file.safetensors", {"w": (values.view(np.uint32) >> 16).astype("<u2")})
    found = SafetensorsFile(tmp_path / "file.safetensors").read("w")
    assert found.dtype == np.float32
    assert (found == (values.view(np.uint32) & 0xFFFF0000).view(np.float32)).all()


def test_safetensors_that_hold_no_floats(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "file.safetensors", {"w": np.zeros(3, "<i8")})
    with pytest.raises(ModelError, match="the tensor w has type I64; expected one of F64, F32, F16, BF16"):
        SafetensorsFile(tmp_path / "file.safetensors").read("w")
    write_safetensors(tmp_path / "file.safetensors", {"w": np.zeros(3, "<f4")}, {"w": "F16"})
    with pytest.raises(ModelError, match=r"the tensor w has not the size of its shape \(3,\)"):
        SafetensorsFile(tmp_path / "file.safetensors").read("w")


def header(entry: Any) -> bytes:
    text = json.dumps({"w": entry}).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 16


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "its header has an impossible length"),
        (b"\xff" * 8 + b"{}", "its header has an impossible length"),
        (b"\2\0\0\0\0\0\0\0[]", ""),
        (b"\2\0\0\0\0\0\0\0{x", "Expecting property name"),
        ((100_000).to_bytes(8, "little") + b"[" * 100_000, "recursion"),
        (header({"dtype": "F32", "shape": [4], "data_offsets": [0, 17]}), "the tensor w lies outside the file"),
        (header({"dtype": "F32", "shape": [4], "data_offsets": [8, 4]}), "the tensor w lies outside the file"),
        (header({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}), "the tensor w has no type or no values"),
        (header({"dtype": None, "shape": [4], "data_offsets": [0, 16]}), "the tensor w has no type or no values"),
        (header({"dtype": "F32", "data_offsets": [0, 16]}), "shape"),
        (header({"dtype": "F32", "shape": [4]}), "data_offsets"),
        (header("text"), "string indices"),
    ],
)
def test_damaged_safetensors(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"is not a whole safetensors file: .*{reason}.*Download or export it again"):
        SafetensorsFile(path)
