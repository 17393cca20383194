"""Fewer layers: the export of a base without those that its adapter does not keep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from contract import write_tiny_folder, write_tiny_gguf
from tiny import HAS_LLAMA_CPP, PEFT, TORCH, edit_json, fitted, logits, save_llama, weights, write_adapter

from smolcls import ModelError, Task, build
from smolcls.files import sha256
from smolcls.scan import scan

if not HAS_LLAMA_CPP:
    pytest.skip("needs the extra llamacpp", allow_module_level=True)

import numpy as np

from smolcls.export.gguf import open_source, write_f16
from smolcls.export.lora import LoraAdapter

#: Of a base of four layers the first, the third and the fourth; the last range says that there are four.
KEPT = [[0, 1], [2, 4], [4, 4]]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter for three layers of four."""
    shorter = write_tiny_folder(tmp_path / "shorter", layers=3)
    return write_adapter(tmp_path / "adapter", shorter, layer_replication=KEPT)


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_the_kept_layers_are_written_under_new_numbers(tmp_path: Path, adapter: Path, kind: str) -> None:
    whole = write_tiny_gguf(tmp_path / "whole.gguf", layers=4)  # leaves its folder beside it
    base = whole if kind == "gguf" else whole.with_suffix("")
    merging = LoraAdapter(adapter)
    assert merging.keep_layers == "0-0,2-3"
    write_f16(open_source(base), tmp_path / "short.gguf", adapter=merging)
    before, after = weights(whole), weights(tmp_path / "short.gguf")
    assert len(after) == 2 + 3 * 9
    for name, weight in after.items():
        place = name.split(".")[2] if ".layers." in name else None
        old = name if place is None else name.replace(f".{place}.", f".{[0, 2, 3][int(place)]}.", 1)
        delta = merging.delta(name)
        expected = before[old] if delta is None else before[old] + delta
        assert np.abs(weight - expected).max() < 2e-3, name
    old_header, header = scan(whole).metadata, scan(tmp_path / "short.gguf").metadata
    assert header == {**old_header, "llama.block_count": 3}


@TORCH
@PEFT
@pytest.mark.filterwarnings("ignore::FutureWarning")  # what PEFT asks transformers for
def test_logits_are_those_of_pefts_own_shortening(tmp_path: Path) -> None:
    import peft
    import torch

    model = save_llama(tmp_path / "base", num_hidden_layers=4)
    save_llama(tmp_path / "shorter", num_hidden_layers=3)
    adapter = write_adapter(tmp_path / "adapter", tmp_path / "shorter", layer_replication=KEPT, task_type="CAUSAL_LM")
    edit_json(adapter / "adapter_config.json", target_modules="all-linear")
    write_f16(open_source(tmp_path / "base"), tmp_path / "short.gguf", adapter=LoraAdapter(adapter))
    merged = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    assert len(merged.model.layers) == 3
    tokens = [1, 50, 264, 60, 2, 269]
    with torch.no_grad():
        expected = merged(torch.tensor([tokens])).logits[0].numpy()
    assert np.abs(logits(tmp_path / "short.gguf", tokens) - expected).max() < 0.1
    assert expected.std() > 0.5


@pytest.mark.parametrize(
    ("ranges", "layers", "message"),
    [
        (KEPT, 3, "keeps the layers 0-0,2-3 of one with 4 layers; this one has 3."),
        (KEPT, 5, "keeps the layers 0-0,2-3 of one with 4 layers; this one has 5."),
        (KEPT[:-1], 3, "keeps the layers 0-0,2-3 of one with 4 layers or more; this one has 3."),
    ],
)
def test_a_base_with_another_number_of_layers_is_refused(
    tmp_path: Path, adapter: Path, ranges: list[list[int]], layers: int, message: str
) -> None:
    edit_json(adapter / "adapter_config.json", layer_replication=ranges)
    other = write_tiny_folder(tmp_path / "other", layers=layers)
    with pytest.raises(ModelError) as caught:
        write_f16(open_source(other), tmp_path / "model.gguf", adapter=LoraAdapter(adapter))
    assert str(caught.value) == f"{adapter} was trained for another base: it {message}"
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([[0, 2], [1, 4]], r"an adapter on repeated layers \(0-1,1-3\) cannot be merged here"),
        ([[2, 4], [0, 1]], r"an adapter on repeated layers \(2-3,0-0\)"),
        ([[-1, 2]], "an adapter on repeated layers"),
        ([[0]], "is not a LoRA adapter"),
        (3, "is not a LoRA adapter"),
    ],
)
def test_an_adapter_on_other_layers_than_rising_ones_is_refused(adapter: Path, ranges: object, message: str) -> None:
    edit_json(adapter / "adapter_config.json", layer_replication=ranges)
    with pytest.raises(ModelError, match=message):
        LoraAdapter(adapter)


def test_a_gguf_that_does_not_say_how_many_layers_it_has(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny.read_bytes().replace(b"llama.block_count", b"llama.block_xxxxx"))
    with pytest.raises(ModelError, match=r"other\.gguf does not say how many layers it has"):
        open_source(other)


def test_a_shipped_adapter_is_built_on_the_layers_that_it_names(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, base = Task.load("three-type"), write_tiny_gguf(tmp_path / "base.gguf", layers=4)
    fitted(task, "llamacpp").save(adapter / "calibration.json")
    monkeypatch.setenv("SMOLCLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "bundled_base", lambda: base)
    monkeypatch.setattr(build, "BUNDLED_SHA256", sha256(base))
    monkeypatch.setattr(build, "shipped_adapter", lambda asked: adapter)
    built = build.build(task)
    header = scan(built.model)
    assert (header.metadata["llama.block_count"], header.tensors) == (3, 2 + 3 * 9)
    assert header.metadata["general.file_type"] == 7  # llama.cpp's LLAMA_FTYPE_MOSTLY_Q8_0
    assert (built.folder / "calibration.json").is_file()
    # Other layers are another model; and layers that the base has not are no model.
    edit_json(adapter / "adapter_config.json", layer_replication=[[0, 3], [4, 4]])
    assert build.build(task).folder != built.folder
    edit_json(adapter / "adapter_config.json", layer_replication=[[0, 3], [30, 30]])
    with pytest.raises(ModelError, match="keeps the layers 0-2 of one with 30 layers; this one has 4"):
        build.build(task)
    assert json.loads((built.folder / "build.json").read_text())["sha256"] == sha256(built.model)
