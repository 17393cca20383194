"""A model folder as transformers saves it, as a source of weights for the GGUF export.

What a folder's `config.json` can say and this export does not carry over is refused, for the file would
load, and answer wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smolcls.errors import ModelError
from smolcls.export.llama import ARCHITECTURE, LAYER_NAMES, OUTER_NAMES, Tensor, hf_name
from smolcls.export.safetensors import SafetensorsFile
from smolcls.export.tokenizer import model_json, write_tokenizer

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_COMPUTED = ".rotary_emb.inv_freq"  # a buffer that old versions saved; llama.cpp computes it


class FolderSource:
    """Weights of a Hugging Face folder: `config.json`, `tokenizer.json`, one or more safetensors files.

    Raises:
        ModelError: a file is missing or damaged, or the model is not one of the plain Llama family.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = model_json(folder / "config.json")
        self._check_family()
        self.heads = self._number("num_attention_heads")
        self.kv_heads = self._number("num_key_value_heads", self.heads)
        self.layers = self._number("num_hidden_layers")
        files = [path for path in sorted(folder.glob("*.safetensors")) if path.name != _ADAPTER_WEIGHTS]
        if not files:
            raise ModelError(
                f"{folder} has no safetensors file. Expected the weights of a model saved by transformers."
            )
        self._places = {name: file for file in map(SafetensorsFile, files) for name in file.names}

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor; `lm_head` is left out where it is tied to the embeddings."""
        tied = bool(self.config.get("tie_word_embeddings", False))
        names = [f"{name}.weight" for name in OUTER_NAMES if not (tied and name == "output")]
        names += [f"blk.{layer}.{name}.weight" for layer in range(self.layers) for name in LAYER_NAMES]
        keys = {f"{hf_name(name)}.weight": name for name in names}
        missing = sorted(set(keys) - set(self._places))
        if missing:
            raise ModelError(f"{self.folder} lacks the tensor {missing[0]}.")
        known = {*keys, "lm_head.weight"}
        foreign = sorted(name for name in self._places if name not in known and not name.endswith(_COMPUTED))
        if foreign:
            raise ModelError(f"{self.folder} has the tensor {foreign[0]}, which the GGUF export would leave out.")
        for key, name in keys.items():
            file = self._places[key]
            yield Tensor(name, file.shape(key), lambda file=file, key=key: file.read(key))  # type: ignore[misc]

    def write_metadata(self, writer: Any, layers: int | None = None) -> None:
        """Hyper-parameters from `config.json`, the vocabulary from `tokenizer.json`."""
        config, width = self.config, self._number("hidden_size")
        head_size = self._number("head_dim", width // self.heads)
        vocabulary = self._number("vocab_size")
        # The last part alone: a folder's whole path is nobody's business.
        writer.add_name(Path(str(config.get("_name_or_path") or self.folder)).name)
        writer.add_context_length(self._number("max_position_embeddings"))
        writer.add_embedding_length(width)
        writer.add_block_count(self.layers if layers is None else layers)
        writer.add_feed_forward_length(self._number("intermediate_size"))
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_key_length(head_size)
        writer.add_value_length(head_size)
        writer.add_layer_norm_rms_eps(self._real("rms_norm_eps", config.get("rms_norm_eps")))
        theta = self._rope().get("rope_theta", config.get("rope_theta", 10000.0))
        writer.add_rope_freq_base(self._real("rope_theta", theta))
        writer.add_rope_dimension_count(head_size)
        writer.add_vocab_size(vocabulary)
        write_tokenizer(writer, self.folder, vocabulary, config)

    def _check_family(self) -> None:
        kind = self.config.get("model_type")
        if kind != ARCHITECTURE:
            raise ModelError(
                f"{self.folder} holds a model of type {kind!r}. The GGUF export knows the Llama family (SmolLM2, "
                "Llama 2, TinyLlama); use llama.cpp's converter for others."
            )
        rope = self._rope()
        scaling = rope.get("rope_type", rope.get("type", "default"))
        activation = self.config.get("hidden_act", "silu")
        if scaling != "default" or activation not in ("silu", "swish"):
            raise ModelError(
                f"{self.folder} has the activation {activation!r} and the rope scaling {scaling!r}; the GGUF export "
                "knows silu without scaling. Use llama.cpp's converter."
            )

    def _rope(self) -> dict[str, Any]:
        # transformers 5 writes rope_parameters, earlier ones rope_scaling beside rope_theta.
        found = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        if not isinstance(found, dict):
            raise ModelError(f"{self.folder / 'config.json'}: expected an object of rope parameters; found {found!r}.")
        return found

    def _number(self, key: str, default: int | None = None) -> int:
        found = self.config.get(key)
        value = default if found is None else found
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
            raise ModelError(f"{self.folder / 'config.json'}: {key} must be a whole number; found {value!r}.")
        return value

    def _real(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ModelError(f"{self.folder / 'config.json'}: {key} must be a number above 0; found {value!r}.")
        return float(value)
