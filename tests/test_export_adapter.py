"""LoRA adapters: their merge against PEFT's, and those that a plain merge would get wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from contract import write_safetensors, write_tiny_folder
from tiny import (
    HAS_LLAMA_CPP,
    LINEAR,
    PEFT,
    TORCH,
    edit_json,
    logits,
    replace_tensors,
    save_llama,
    weights,
    write_adapter,
)

from smolcls import ModelError

if not HAS_LLAMA_CPP:
    pytest.skip("needs the extra llamacpp", allow_module_level=True)

import numpy as np

from smolcls.export.gguf import open_source, write_f16
from smolcls.export.lora import LoraAdapter
from smolcls.export.safetensors import SafetensorsFile

#: Half of a step of F16 at the size of the weights, 2**-11 of them, and a little for float32's own sums.
ROUNDING = 6e-4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_folder(tmp_path / "model")


@TORCH
@PEFT
@pytest.mark.parametrize("rslora", [False, True], ids=["alpha/r", "alpha/sqrt(r)"])
@pytest.mark.parametrize("kind", ["folder", "gguf"])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # what PEFT asks transformers for
def test_a_merged_adapter_is_pefts_merge(tmp_path: Path, rslora: bool, kind: str) -> None:
    import peft
    import torch

    model = save_llama(tmp_path / "base")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=list(LINEAR),
        use_rslora=rslora,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(9)
    tuned = peft.get_peft_model(model, config)
    tuned.save_pretrained(tmp_path / "adapter")
    base = tmp_path / "base"
    if kind == "gguf":
        base = tmp_path / "base.gguf"
        write_f16(open_source(tmp_path / "base"), base)
    write_f16(open_source(base), tmp_path / "merged.gguf", adapter=LoraAdapter(tmp_path / "adapter"))
    merged = tuned.merge_and_unload(safe_merge=True)
    found, plain = weights(tmp_path / "merged.gguf"), weights(tmp_path / "base.gguf") if kind == "gguf" else None
    for name, weight in found.items():
        expected = merged.state_dict()[f"{name}.weight"].float().numpy()
        steps = 2.0 if kind == "gguf" else 1.0  # there the base was rounded to F16 already
        assert np.abs(weight - expected).max() <= np.abs(expected).max() * ROUNDING * steps, name
        if plain is not None and name.endswith(LINEAR):
            assert np.abs(weight - plain[name]).max() > 0.01
    tokens = [1, 50, 264, 60, 2, 269]
    with torch.no_grad():
        expected_logits = merged(torch.tensor([tokens])).logits[0].numpy()
    assert np.abs(logits(tmp_path / "merged.gguf", tokens) - expected_logits).max() < 0.1


def test_an_adapters_scale_and_modules(folder: Path, tmp_path: Path) -> None:
    plain = LoraAdapter(write_adapter(tmp_path / "plain", folder, modules=("q_proj",)))
    assert plain.scale == 2.0
    assert plain.modules == ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    assert plain.delta("model.layers.0.self_attn.k_proj") is None
    rooted = LoraAdapter(write_adapter(tmp_path / "rooted", folder, modules=("q_proj",), use_rslora=True))
    assert rooted.scale == 8.0 / math.sqrt(4)
    one, other = (item.delta("model.layers.0.self_attn.q_proj") for item in (plain, rooted))
    assert one is not None
    assert other is not None
    assert np.allclose(one * 2.0, other)
    assert one.shape == (64, 64)


def test_an_adapter_on_some_modules_leaves_the_others(folder: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", folder, modules=("v_proj", "down_proj"))
    write_f16(open_source(folder), tmp_path / "base.gguf")
    write_f16(open_source(folder), tmp_path / "merged.gguf", adapter=LoraAdapter(adapter))
    before, after = weights(tmp_path / "base.gguf"), weights(tmp_path / "merged.gguf")
    for name in before:
        assert (before[name] == after[name]).all() == (not name.endswith(("v_proj", "down_proj"))), name


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "IA3"}, "is not a LoRA adapter: peft_type is 'IA3', not 'LORA'"),
        ({"r": 0}, "is not a LoRA adapter: r is 0"),
        ({"r": None}, "is not a LoRA adapter: .*Expected a folder saved by PEFT"),
        ({"lora_alpha": "x"}, "is not a LoRA adapter"),
        ({"use_dora": True}, "an adapter with use_dora=True cannot be merged here; train one without"),
        ({"rank_pattern": {"q_proj": 8}}, "an adapter with rank_pattern={'q_proj': 8} cannot be merged"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"bias": "all"}, "an adapter with bias='all' cannot be merged"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq'"),
        ({"r": 8}, r"has matrices of the shapes \(4, 64\) and \(64, 4\); expected rank 8, as adapter_config.json says"),
    ],
)
def test_adapters_that_a_plain_merge_would_get_wrong(
    folder: Path, tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    write_adapter(tmp_path / "adapter", folder, modules=("q_proj",))
    edit_json(tmp_path / "adapter" / "adapter_config.json", **config)
    with pytest.raises(ModelError, match=reason):
        LoraAdapter(tmp_path / "adapter")


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.lm_head.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
    ],
)
def test_an_adapters_other_tensors_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    path = write_adapter(tmp_path / "adapter", folder, modules=("q_proj",)) / "adapter_model.safetensors"
    file = SafetensorsFile(path)
    write_safetensors(path, {**{key: file.read(key) for key in file.names}, name: np.zeros((4, 64), np.float32)})
    with pytest.raises(ModelError, match=f"the adapter's tensor {name} cannot be merged into a linear layer"):
        LoraAdapter(tmp_path / "adapter")


def test_an_adapter_of_another_base(folder: Path, tmp_path: Path) -> None:
    other = write_tiny_folder(tmp_path / "other", heads=4, kv_heads=4)
    adapter = LoraAdapter(write_adapter(tmp_path / "adapter", other, modules=("k_proj",)))
    with pytest.raises(ModelError, match=r"trained for another base: .*k_proj is \(64, 64\) there and \(32, 64\) here"):
        write_f16(open_source(folder), tmp_path / "model.gguf", adapter=adapter)
    edit_json(folder / "config.json", num_hidden_layers=1)

    def shorten(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".layers.1." in name]:
            del tensors[name]

    replace_tensors(folder, shorten)
    with pytest.raises(ModelError, match=r"another base: this one has no model\.layers\.1\.self_attn\.k_proj"):
        write_f16(open_source(folder), tmp_path / "model.gguf", adapter=adapter)
    assert not (tmp_path / "model.gguf").exists()


def test_an_adapter_that_changes_nothing(folder: Path, tmp_path: Path) -> None:
    adapter = LoraAdapter(write_adapter(tmp_path / "adapter", folder, modules=()))
    with pytest.raises(ModelError, match="trained for another base: this one has no module of it"):
        write_f16(open_source(folder), tmp_path / "model.gguf", adapter=adapter)


def test_an_adapter_of_values_that_are_no_numbers(folder: Path, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "adapter", folder, modules=("q_proj",)) / "adapter_model.safetensors"
    file = SafetensorsFile(path)
    tensors = {key: file.read(key) for key in file.names}
    next(iter(tensors.values()))[0, 0] = math.nan
    write_safetensors(path, tensors)
    with pytest.raises(ModelError, match="merging gives values that are not finite in model"):
        write_f16(open_source(folder), tmp_path / "model.gguf", adapter=LoraAdapter(tmp_path / "adapter"))


def test_an_adapters_folder_without_its_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a LoRA adapter: .*adapter_config\.json"):
        LoraAdapter(tmp_path)
    (write_adapter(tmp_path / "adapter", folder) / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is not a whole safetensors file"):
        LoraAdapter(tmp_path / "adapter")
