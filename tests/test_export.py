"""The GGUF export against torch and llama.cpp, and the quantiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from contract import load_tiny
from tiny import (
    HAS_LLAMA_CPP,
    TORCH,
    edit_json,
    logits,
    save_llama,
    weights,
)

from smolcls import ConfigError, ModelError
from smolcls.scan import scan

if not HAS_LLAMA_CPP:
    pytest.skip("needs the extra llamacpp", allow_module_level=True)

import numpy as np

from smolcls.backends.llamacpp import LlamaCppClassifier
from smolcls.export.gguf import open_source, write_f16
from smolcls.export.llama import hf_name, permute, unpermute
from smolcls.export.quantize import KINDS, check_kind, quantise

#: Half of a step of F16 at the size of the weights, 2**-11 of them, and a little for float32's own sums.
ROUNDING = 6e-4


@pytest.mark.parametrize(("heads", "size"), [(1, 2), (2, 8), (9, 64), (3, 6)])
def test_permutation_pairs_the_halves_of_each_head(heads: int, size: int) -> None:
    weight = np.arange(heads * size * 3).reshape(heads * size, 3)
    permuted = permute(weight, heads)
    for head in range(heads):
        for pair in range(size // 2):
            assert (permuted[head * size + 2 * pair] == weight[head * size + pair]).all()
            assert (permuted[head * size + 2 * pair + 1] == weight[head * size + size // 2 + pair]).all()
    assert (unpermute(permuted, heads) == weight).all()


def test_names() -> None:
    assert hf_name("blk.11.ffn_down.weight") == "model.layers.11.mlp.down_proj"
    assert hf_name("token_embd.weight") == "model.embed_tokens"
    for foreign in ("blk.0.ssm_in.weight", "rope_freqs.weight", "blk.x.attn_q.weight"):
        with pytest.raises(ModelError, match="does not belong to the Llama architecture"):
            hf_name(foreign)


@TORCH
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 4, "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}},
        {"head_dim": 32},
    ],
    ids=["tied", "untied", "theta", "wide-heads"],
)
def test_the_exports_logits_are_torchs(tmp_path: Path, options: dict[str, Any]) -> None:
    import torch

    model = save_llama(tmp_path / "model", **options)
    write_f16(open_source(tmp_path / "model"), tmp_path / "model.gguf")
    with load_tiny(tmp_path / "model.gguf") as classifier:
        assert isinstance(classifier, LlamaCppClassifier)
        tokens = classifier._engine._tokenize("<|im_start|>user\ncommand 42 café<|im_end|>\n", special=True)
    assert tokens[0] == 1
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    found = logits(tmp_path / "model.gguf", tokens)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 0.05
    assert expected.std() > 0.5  # logits that say something


@TORCH
def test_a_merged_folder_in_bfloat16_is_read_as_it_is(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "model")
    model.bfloat16().save_pretrained(tmp_path / "model")
    write_f16(open_source(tmp_path / "model"), tmp_path / "model.gguf")
    for name, weight in weights(tmp_path / "model.gguf").items():
        expected = model.state_dict()[f"{name}.weight"].float().numpy()
        assert np.abs(weight - expected).max() <= np.abs(expected).max() * ROUNDING


@TORCH
def test_the_metadata_is_the_models(tmp_path: Path) -> None:
    save_llama(tmp_path / "secret-place" / "model")
    edit_json(
        tmp_path / "secret-place" / "model" / "config.json", _name_or_path=str(tmp_path / "secret-place" / "base")
    )
    write_f16(open_source(tmp_path / "secret-place" / "model"), tmp_path / "model.gguf")
    metadata = scan(tmp_path / "model.gguf").metadata
    assert metadata["general.name"] == "base"
    assert metadata["llama.attention.head_count_kv"] == 2
    assert metadata["tokenizer.ggml.pre"] == "smollm"
    assert metadata["tokenizer.ggml.eos_token_id"] == 2
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert metadata["tokenizer.chat_template"] == "{{ messages[0]['content'] }}"
    assert b"secret-place" not in (tmp_path / "model.gguf").read_bytes()


@TORCH
def test_the_tokens_are_transformers_own(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_llama(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    write_f16(open_source(tmp_path / "model"), tmp_path / "model.gguf")
    with load_tiny(tmp_path / "model.gguf") as classifier:
        assert isinstance(classifier, LlamaCppClassifier)
        for text in ("fix 123 bugs", "ünï ½ ² 😀", "a  b\n\n\tc", "command promptly", "'ll", "٣"):
            assert classifier.tokenize(text) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_an_f16_file_is_rewritten_without_loss(tiny: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_f16(open_source(tiny), tmp_path / "again.gguf", progress=lambda done, total: seen.append((done, total)))
    before, after = weights(tiny), weights(tmp_path / "again.gguf")
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    assert scan(tiny).metadata == scan(tmp_path / "again.gguf").metadata
    assert seen == [(number, 20) for number in range(1, 21)]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["again.gguf"]


def test_a_quantised_file_is_dequantised(tiny: Path, tmp_path: Path) -> None:
    quantise(tiny, tmp_path / "q8.gguf", "Q8_0", threads=1)
    write_f16(open_source(tmp_path / "q8.gguf"), tmp_path / "f16.gguf")
    before, after = weights(tiny), weights(tmp_path / "f16.gguf")
    for name in before:
        assert np.abs(before[name] - after[name]).max() <= np.abs(before[name]).max() / 100
    assert scan(tmp_path / "f16.gguf").metadata["general.file_type"] == 1


def test_an_error_while_writing_leaves_the_old_file(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"old")

    def stop(done: int, _total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_f16(open_source(tiny), target, progress=stop)
    assert target.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0qwen2", "has the architecture 'qwen2'; expected 'llama'"),
        (b"llama.attention.head_count\x04", b"llama.attention.head_xxxxx\x04", "does not say how many attention heads"),
        (b"llama.attention.head_count\x04\0\0\0\4", b"llama.attention.head_count\x04\0\0\0\0", "heads .*found 0"),
    ],
)
def test_a_gguf_that_cannot_be_a_base(tiny: Path, tmp_path: Path, old: bytes, new: bytes, reason: str) -> None:
    content = tiny.read_bytes()
    assert old in content
    (tmp_path / "other.gguf").write_bytes(content.replace(old, new, 1))
    with pytest.raises(ModelError, match=reason):
        open_source(tmp_path / "other.gguf")


def test_an_adapter_as_gguf_is_no_base(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "adapter.gguf", "llama")
    writer.add_type("adapter")
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="is an adapter or a part of a model; expected a whole model in one file"):
        open_source(tmp_path / "adapter.gguf")


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_gives_a_whole_file_that_answers(tiny: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "quantised.gguf"
    quantise(tiny, target, kind, threads=1)
    assert scan(target).tensors == 20
    assert target.stat().st_size < tiny.stat().st_size
    with load_tiny(target) as classifier:
        assert classifier.classify("hi").label is not None
    assert [item.name for item in tmp_path.iterdir()] == ["quantised.gguf"]


def test_an_unknown_kind(tiny: Path, tmp_path: Path) -> None:
    assert check_kind("F16") == "F16"
    with pytest.raises(ConfigError, match="Unknown quantisation 'q4'; expected F16 or one of Q4_K_M, Q4_0"):
        quantise(tiny, tmp_path / "x.gguf", "q4")
    assert not (tmp_path / "x.gguf").exists()


def test_sources_that_cannot_be_quantised(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quantise(tiny, tmp_path / "q4.gguf", "Q4_0", threads=1)
    with pytest.raises(ModelError, match=r"could not quantise .*q4\.gguf to Q8_0 \(code 1\): .*requantizing from type"):
        quantise(tmp_path / "q4.gguf", tmp_path / "x.gguf", "Q8_0", threads=1)
    (tmp_path / "half.gguf").write_bytes(tiny.read_bytes()[:50_000])
    with pytest.raises(ModelError, match=r"half\.gguf is not a whole GGUF file"):
        quantise(tmp_path / "half.gguf", tmp_path / "x.gguf", "Q4_K_M")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["half.gguf", "q4.gguf"]
    assert capfd.readouterr() == ("", "")
