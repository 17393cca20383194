"""Writing GGUF files of the Llama architecture, tensor by tensor.

A source gives metadata and tensors; `write_f16` writes them with an adapter added on the way, holding
one tensor at a time in memory. Two sources exist: a GGUF file (dequantised) and a Hugging Face folder.
Names and permutation follow llama.cpp's own converter; its `LlamaModel` is the reference for a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from smolcls.errors import ModelError, require
from smolcls.export.lora import LoraAdapter
from smolcls.export.safetensors import SafetensorsFile
from smolcls.files import replacing
from smolcls.scan import scan

ARCHITECTURE = "llama"
#: GGUF names of a layer's weights → Hugging Face's.
LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
#: The weights outside the layers.
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_F16_FILE_TYPE = 1


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor to be written: its GGUF name, shape (out, in) and a function that reads it as float32."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[np.float32]]


class Source(Protocol):
    """Where weights come from. Weights are in Hugging Face's order: q and k rows are not permuted."""

    heads: int
    kv_heads: int

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor."""
        ...

    def write_metadata(self, writer: Any) -> None:
        """Add the metadata to a `gguf.GGUFWriter`."""
        ...


def hf_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor, without `.weight`: `blk.0.attn_q.weight` → `model.layers.0.self_attn.q_proj`.

    Raises:
        ModelError: a tensor that the Llama architecture does not have.
    """
    stem = name.removesuffix(".weight")
    if stem in OUTER_NAMES:
        return OUTER_NAMES[stem]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if match is None or match[2] not in LAYER_NAMES:
        raise ModelError(f"The tensor {name!r} does not belong to the Llama architecture.")
    return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}"


def permute(weight: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Hugging Face's order of rotary rows (halves) → llama.cpp's (pairs), for a q or k weight or its LoRA B."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def unpermute(weight: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """The inverse of `permute`."""
    rows = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


class GgufSource:
    """Weights and metadata of a GGUF file of the Llama architecture; quantised weights are dequantised.

    Raises:
        ModelError: the file is damaged or of another architecture.
    """

    def __init__(self, path: Path) -> None:
        header = scan(path)
        if header.architecture != ARCHITECTURE:
            raise ModelError(f"{path} has the architecture {header.architecture!r}; expected {ARCHITECTURE!r}.")
        self._gguf = require("gguf", extra="llamacpp", purpose="Building a model")
        self._reader = self._gguf.GGUFReader(path)
        self.heads = int(header.metadata["llama.attention.head_count"])
        self.kv_heads = int(header.metadata.get("llama.attention.head_count_kv", self.heads))

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor, q and k rows back in Hugging Face's order."""
        for tensor in self._reader.tensors:
            shape = tuple(int(size) for size in reversed(tensor.shape))
            yield Tensor(tensor.name, shape, lambda tensor=tensor, shape=shape: self._read(tensor, shape))  # type: ignore[misc]

    def write_metadata(self, writer: Any) -> None:
        """Copy everything but what describes the file itself."""
        left_out = {"general.architecture", "general.file_type", "general.quantization_version"}
        kinds = self._gguf.GGUFValueType
        for key, field in self._reader.fields.items():
            if key.startswith("GGUF.") or key in left_out:
                continue
            inner = field.types[-1] if field.types[0] == kinds.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)

    def _read(self, tensor: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        values = self._gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        weight = np.asarray(values, dtype=np.float32).reshape(shape)
        heads = rotary_heads(tensor.name, self)
        return weight if heads is None else unpermute(weight, heads)


class FolderSource:
    """Weights of a Hugging Face folder: `config.json`, `tokenizer.json`, one or more safetensors files.

    Raises:
        ModelError: a file is missing or damaged, or the architecture is not Llama's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = _json(folder / "config.json")
        kind = self.config.get("model_type")
        if kind != "llama":
            raise ModelError(
                f"{folder} holds a model of type {kind!r}. The GGUF export knows the Llama family (SmolLM2, Llama, "
                "TinyLlama); use llama.cpp's converter for others."
            )
        self.heads = int(self.config["num_attention_heads"])
        self.kv_heads = int(self.config.get("num_key_value_heads") or self.heads)
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{folder} has no safetensors file. Expected the weights of a model saved by transformers.")
        self._files = [SafetensorsFile(path) for path in files if path.name != "adapter_model.safetensors"]

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor; `lm_head` is left out where it is tied to the embeddings."""
        places = {name: file for file in self._files for name in file.names}
        tied = bool(self.config.get("tie_word_embeddings", False))
        outer = [name for name in OUTER_NAMES if not (tied and name == "output")]
        layers = range(int(self.config["num_hidden_layers"]))
        names = [f"{name}.weight" for name in outer]
        names += [f"blk.{layer}.{name}.weight" for layer in layers for name in LAYER_NAMES]
        for name in names:
            key = f"{hf_name(name)}.weight"
            if key not in places:
                raise ModelError(f"{self.folder} lacks the tensor {key}.")
            file = places[key]
            yield Tensor(name, file.shape(key), lambda file=file, key=key: file.read(key))  # type: ignore[misc]

    def write_metadata(self, writer: Any) -> None:
        """Hyper-parameters from `config.json`, the vocabulary from `tokenizer.json`."""
        config = self.config
        head_size = int(config.get("head_dim") or config["hidden_size"] // self.heads)
        rope = config.get("rope_parameters") or {}
        writer.add_name(str(config.get("_name_or_path") or self.folder.name))
        writer.add_context_length(int(config["max_position_embeddings"]))
        writer.add_embedding_length(int(config["hidden_size"]))
        writer.add_block_count(int(config["num_hidden_layers"]))
        writer.add_feed_forward_length(int(config["intermediate_size"]))
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
        writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
        writer.add_rope_dimension_count(head_size)
        writer.add_vocab_size(int(config["vocab_size"]))
        _write_tokenizer(writer, self.folder, int(config["vocab_size"]), config)


def open_source(path: Path) -> Source:
    """The source for a GGUF file or a Hugging Face folder."""
    if path.is_dir():
        return FolderSource(path)
    return GgufSource(path)


def rotary_heads(name: str, source: Source) -> int | None:
    """The number of heads whose rows llama.cpp permutes in this tensor, or None where it permutes none."""
    if name.endswith(".attn_q.weight"):
        return source.heads
    return source.kv_heads if name.endswith(".attn_k.weight") else None


def write_f16(
    source: Source, path: Path, *, adapter: LoraAdapter | None = None, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write a GGUF in F16 (norms in F32), the adapter merged in, whole or not at all.

    Args:
        progress: called with (tensors written, tensors in all) after each one.

    Raises:
        ModelError: the adapter does not fit the base, or changes nothing in it.
    """
    gguf = require("gguf", extra="llamacpp", purpose="Building a model")
    tensors = list(source.tensors())
    if adapter is not None:
        _check_adapter(adapter, tensors)
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
        try:
            source.write_metadata(writer)
            writer.add_file_type(_F16_FILE_TYPE)
            for tensor in tensors:
                kind = np.dtype(np.float32 if len(tensor.shape) == 1 else np.float16)
                size = int(np.prod(tensor.shape)) * kind.itemsize
                writer.add_tensor_info(tensor.name, tensor.shape, kind, size)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for done, tensor in enumerate(tensors, start=1):
                writer.write_tensor_data(_final(tensor, source, adapter))
                if progress:
                    progress(done, len(tensors))
        finally:
            writer.close()


def _final(tensor: Tensor, source: Source, adapter: LoraAdapter | None) -> npt.NDArray[Any]:
    weight = tensor.read()
    if len(tensor.shape) == 1:
        return weight
    if adapter is not None:
        weight = adapter.add_to(hf_name(tensor.name), weight)
    heads = rotary_heads(tensor.name, source)
    return (weight if heads is None else permute(weight, heads)).astype(np.float16)


def _check_adapter(adapter: LoraAdapter, tensors: list[Tensor]) -> None:
    there = {hf_name(tensor.name) for tensor in tensors}
    foreign = [module for module in adapter.modules if module not in there]
    if foreign or not adapter.modules:
        raise ModelError(
            f"{adapter.folder} was trained for another base: this one has no {foreign[0] if foreign else 'module of it'}."
        )


def _write_tokenizer(writer: Any, folder: Path, size: int, config: dict[str, Any]) -> None:
    """Byte-level BPE as `tokenizer.json` holds it. Token types: 1 normal, 3 control, 4 user-defined, 5 unused."""
    content = _json(folder / "tokenizer.json")
    model = content.get("model", {})
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(content.get("pre_tokenizer")):
        raise ModelError(f"{folder} has a tokenizer of type {model.get('type')!r}; expected byte-level BPE.")
    tokens, kinds = [f"[PAD{index}]" for index in range(size)], [5] * size
    for token, index in model["vocab"].items():
        tokens[index], kinds[index] = token, 1
    for added in content.get("added_tokens", []):
        tokens[added["id"]], kinds[added["id"]] = added["content"], 3 if added["special"] else 4
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(content, folder))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    for name, add in (
        ("bos_token_id", writer.add_bos_token_id),
        ("eos_token_id", writer.add_eos_token_id),
        ("pad_token_id", writer.add_pad_token_id),
    ):
        if isinstance(config.get(name), int):
            add(config[name])
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))


def _pre_tokenizer(content: dict[str, Any], folder: Path) -> str:
    """llama.cpp's name of the pre-tokenizer: `smollm` splits digits one by one before the byte level."""
    steps = content["pre_tokenizer"].get("pretokenizers", [content["pre_tokenizer"]])
    kinds = [step["type"] for step in steps]
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    raise ModelError(
        f"{folder} splits texts by {' + '.join(kinds)}, which the GGUF export does not know; expected SmolLM2's "
        "Digits + ByteLevel, or ByteLevel alone."
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        return content
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error
