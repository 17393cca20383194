"""The ONNX export against torch, its tokenizer against llama.cpp, and models that it must refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from contract import load_tiny, write_tiny_folder
from tiny import (
    HAS_LLAMA_CPP,
    HAS_ONNX,
    TORCH,
    edit_json,
    replace_tensors,
    save_llama,
    weights,
    write_tiny_onnx,
)

from smolcls import ModelError

if not HAS_ONNX:
    pytest.skip("needs the extra onnx", allow_module_level=True)

import gguf
import numpy as np
from onnx_files import ByHand, constants, in_float

from smolcls.export import onnx
from smolcls.export.gguf import GgufSource, open_source, write_f16

OPTIONS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "theta": {"num_key_value_heads": 4, "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}},
    "one-kv-head": {"num_key_value_heads": 1},
    "wide-heads": {"head_dim": 32},
    "three-layers": {"num_hidden_layers": 3},
}


def in_steps(model: Any) -> Any:
    """Round a torch model's matrices to what eight bit, F16 and float32 hold without loss; uneven norms."""
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:  # each row's largest is 127 steps
                weight.copy_(torch.round(weight / weight.abs().amax(1, keepdim=True).clamp_min(1e-9) * 127) / 256)
            else:
                weight.uniform_(0.5, 1.5)
    return model


def export(folder: Path) -> Path:
    """The ONNX file of a model's folder, written into it."""
    write_f16(open_source(folder), folder / "model.gguf")
    onnx.write(GgufSource(folder / "model.gguf"), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_onnx(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


@TORCH
@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("options", list(OPTIONS.values()), ids=list(OPTIONS))
def test_the_graph_is_torchs_model(tmp_path: Path, options: dict[str, Any]) -> None:
    """With products in float32 to its noise; in eight bit the activations' rounding is all that is added."""
    import torch

    folder = tmp_path / "model"
    model = in_steps(save_llama(folder, **options))
    model.save_pretrained(folder)
    path = export(folder)
    tokens = [1, *np.random.default_rng(0).integers(0, 259, 80).tolist()]
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()[1:]
        first = model(torch.tensor([tokens[:1]]), use_cache=True).past_key_values
    vocabulary = list(range(expected.shape[1]))
    exact = ByHand(in_float(path, tmp_path / "float.onnx"))
    assert expected.std() > 1.0  # logits that say something
    assert np.abs(exact.logits(tokens, vocabulary) - expected).max() < 1e-4
    rounded = ByHand(path).logits(tokens, vocabulary)
    assert np.sqrt(np.mean((rounded - expected) ** 2)) < 0.08 * expected.std()
    pairs = [array.numpy() for layer in first.layers for array in (layer.keys, layer.values)]
    for found, reference in zip(exact.first_past.values(), pairs, strict=True):
        assert found.shape == reference.shape
        assert np.abs(found - reference).max() < 1e-5


def test_weights_are_the_nearest_of_255_steps_a_row(tiny_onnx: Path) -> None:
    stored, whole = constants(tiny_onnx), weights(tiny_onnx.with_suffix(".gguf"))
    qkv = [whole[f"model.layers.1.self_attn.{part}_proj"] for part in "qkv"]
    for name, weight in {
        "layers.1.qkv": np.concatenate(qkv),
        "layers.0.mlp.down_proj": whole["model.layers.0.mlp.down_proj"],
        "embed_tokens": whole["model.embed_tokens"],
    }.items():
        numbers, scales = stored[f"{name}.weight"], stored[f"{name}.scale"].reshape(-1, 1)
        assert numbers.dtype == np.int8
        numbers = (numbers if name == "embed_tokens" else numbers.T).astype(np.float32)
        assert (np.abs(numbers).max(axis=1) == 127).all()
        assert (np.abs(numbers * scales - weight) <= scales * 0.501).all()


def test_a_token_whose_gate_is_loud_leaves_the_others_their_steps(tmp_path: Path) -> None:
    """One scale for all tokens would round what the quieter ones send through the gated block to nothing."""
    loud, quiet = 200, [1, *range(20, 60)]
    folder = write_tiny_folder(tmp_path / "model")

    def change(tensors: dict[str, Any]) -> None:
        # Of the stream's first dimension, which the loud token alone has, the gated block makes thousands.
        tensors["model.embed_tokens.weight"][:, 0] = 0
        tensors["model.embed_tokens.weight"][loud, 0] = 1
        tensors["model.layers.0.self_attn.o_proj.weight"][0] = 0
        for part in ("gate", "up"):
            tensors[f"model.layers.0.mlp.{part}_proj.weight"][0] = 0
            tensors[f"model.layers.0.mlp.{part}_proj.weight"][0, 0] = 64
        tensors["model.layers.0.mlp.down_proj.weight"][:, 0] = 0  # they themselves go nowhere

    replace_tensors(folder, change)
    graph = ByHand(export(folder))
    alone = graph.logits(quiet, list(range(259)))
    together = graph.logits([*quiet, loud], list(range(259)))[:-1]
    # The last token is seen by none before it: only scales could carry anything from it.
    assert np.sqrt(np.mean((together - alone) ** 2)) < 0.05 * alone.std()


def test_progress_counts_the_layers_and_an_error_leaves_the_old_file(tiny: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    target = tmp_path / "model.onnx"
    onnx.write(GgufSource(tiny), target, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    before = target.read_bytes()

    def stop(done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        onnx.write(GgufSource(tiny), target, progress=stop)
    assert target.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]


def rewritten(path: Path, target: Path, leave_out: str = "", **changes: Any) -> Path:
    """Write a GGUF again, with other metadata (dots of a key as `__`), or without a tensor."""
    reader, writer = gguf.GGUFReader(path), gguf.GGUFWriter(target, "llama")
    wanted = {key.replace("__", "."): value for key, value in changes.items()}
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, wanted.pop(key, field.contents()), field.types[0], sub_type=inner)
    for key, value in wanted.items():
        writer.add_string(key, value)
    for tensor in reader.tensors:
        if tensor.name != leave_out:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokenizer__ggml__pre": "llama-bpe"}, "is of the kind 'gpt2' and split by 'llama-bpe'; an ONNX model can"),
        ({"tokenizer__ggml__model": "llama"}, "is of the kind 'llama' and split by 'smollm'.*Use the llamacpp backend"),
        ({"tokenizer__ggml__merges": ["c zz"]}, "vocabulary is damaged: .*`zz` out of vocabulary"),
        ({"tokenizer__ggml__merges": ["co"]}, "vocabulary is damaged: "),
        ({"tokenizer__ggml__token_type": [1, 3]}, "vocabulary is damaged: "),
        ({"leave_out": "blk.1.ffn_up.weight"}, r"lacks the tensor layers\.1\.mlp\.up_proj\."),
        ({"leave_out": "output_norm.weight"}, "lacks the tensor norm"),
        ({"llama__block_count": 9}, r"lacks the tensor layers\.2\."),
        ({"llama__attention__key_length": 32}, "tensors of layer 0 do not fit together: "),
        ({"llama__attention__layer_norm_rms_epsilon": 0.0}, "rms_epsilon must be a number above 0; found 0.0"),
        ({"llama__rope__scaling__type": "linear"}, "has the rope scaling 'linear'"),
    ],
)
def test_a_model_that_cannot_be_written(tiny: Path, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    source = GgufSource(rewritten(tiny, tmp_path / "other.gguf", **changes))
    with pytest.raises(ModelError, match=reason):
        onnx.write(source, tmp_path / "model.onnx")
    assert [item.name for item in tmp_path.iterdir()] == ["other.gguf"]


def test_a_model_without_chatmls_tokens(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(tiny.read_bytes().replace(b"<|im_start|>", b"<|im_begin|>"))
    with pytest.raises(ModelError, match=r"has no token <\|im_start\|>; smolcls needs ChatML's"):
        onnx.write(GgufSource(tmp_path / "other.gguf"), tmp_path / "model.onnx")


def test_a_model_that_one_file_cannot_hold(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "_LARGEST", 10_000)
    with pytest.raises(ModelError, match=r"too large for an ONNX file.*use the llamacpp backend for it"):
        onnx.write(GgufSource(tiny), tmp_path / "model.onnx")


def test_a_longer_context_is_cut_to_the_rotations_table(tiny: Path, tmp_path: Path) -> None:
    for length, expected in ((100_000, 8192), (600, 600)):
        onnx.write(
            GgufSource(rewritten(tiny, tmp_path / f"{length}.gguf", llama__context_length=length)),
            tmp_path / f"{length}.onnx",
        )
        assert ByHand(tmp_path / f"{length}.onnx").metadata["context"] == str(expected)
        assert constants(tmp_path / f"{length}.onnx")["cosines"].shape[0] == expected


#: Tokens that cross what the splitters part, and what only one of the two parts.
WORDS = (
    "12",
    "123",
    "Ġ1",
    "Ġt",
    "Ġth",
    "Ġthe",
    "ĊĊ",
    "'s",
    "'l",
    "'ll",
    "ĠĠ",
    "a1",
    "e.",
    "..",
    "Ã©",
    "Ċa",
    "s'",
    "aĠ",
)
LINES = (
    "a1 12 123 1234 the thethe", "it's they'll s'll 'S", "a\n\na \n a  the   1", "e... é.é 12.3e.", "٣٤12 ½12 x²1",
    "  a  ", "a\t\n\r\n1", "日本語12の", "\u3000the\xa0the", "e\u0301é", "<|im_end|>12<|im_start|>", "\x00\x07\x7f",
)  # fmt: skip


@pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs the extra llamacpp")
@pytest.mark.parametrize("splitting", ["smollm", "gpt-2"])
def test_the_tokenizer_gives_llama_cpps_tokens(tmp_path: Path, splitting: str) -> None:
    folder = write_tiny_folder(tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    for word in WORDS:
        content["model"]["vocab"].setdefault(word, len(content["model"]["vocab"]))
        content["model"]["merges"].append([word[:-1], word[-1]])
    if splitting == "gpt-2":
        content["pre_tokenizer"] = content["pre_tokenizer"]["pretokenizers"][1]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    size = len(content["model"]["vocab"])
    edit_json(folder / "config.json", vocab_size=size)

    def grow(tensors: dict[str, Any]) -> None:
        name = "model.embed_tokens.weight"
        tensors[name] = np.resize(tensors[name], (size, tensors[name].shape[1]))

    replace_tensors(folder, grow)
    write_f16(open_source(folder), tmp_path / "model.gguf")
    source = GgufSource(tmp_path / "model.gguf")
    assert source.value("tokenizer.ggml.pre") == splitting
    made = onnx.tokenizer_of(source)
    made.encode_special_tokens = True
    with load_tiny(tmp_path / "model.gguf") as classifier:
        for line in LINES:
            assert made.encode(line).ids == classifier.tokenize(line), line  # type: ignore[attr-defined]
    assert made.decode(made.encode("it's 12 é").ids) == "it's 12 é"
    # The splittings part: digits one by one, or together.
    assert len(made.encode("123").ids) == (3 if splitting == "smollm" else 1)


def test_special_tokens_are_read_where_they_are_meant(tiny: Path) -> None:
    made = onnx.tokenizer_of(GgufSource(tiny))
    assert made.encode("<|im_start|>a<|im_end|>").ids == [1, made.token_to_id("a"), 2]
    made.encode_special_tokens = True
    assert made.encode("<|im_end|>").ids == [made.token_to_id(sign) for sign in "<|im_end|>"]


@pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs the extra llamacpp")
def test_user_defined_tokens_are_read_in_texts_as_llama_cpp_does(tiny: Path, tmp_path: Path) -> None:
    kinds = list(GgufSource(tiny).value("tokenizer.ggml.token_type"))
    tokens = list(GgufSource(tiny).value("tokenizer.ggml.tokens"))
    own, unused = tokens.index("workflow"), tokens.index("command")
    kinds[own], tokens[own], kinds[unused] = 4, "<tool>", 5
    path = rewritten(
        tiny, tmp_path / "other.gguf", tokenizer__ggml__token_type=kinds, tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__merges=["p r"],
    )  # fmt: skip
    made = onnx.tokenizer_of(GgufSource(path))
    made.encode_special_tokens = True
    found = made.encode("a<tool>b").ids
    assert found == [tokens.index("a"), own, tokens.index("b")]
    with load_tiny(path) as classifier:
        assert classifier.tokenize("a<tool>b") == found  # type: ignore[attr-defined]
    assert made.token_to_id("command") is None
