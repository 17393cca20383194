"""The Llama architecture's weights: their names and order in GGUF and in Hugging Face's files.

Names and permutation follow llama.cpp's own converter; its `LlamaModel` is the reference. Every source of
weights gives them in Hugging Face's order, so that an adapter, which is in that order, can be added.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from smolcls.errors import ModelError

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
    layers: int

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor."""
        ...

    def write_metadata(self, writer: Any, layers: int | None = None) -> None:
        """Add the metadata to a `gguf.GGUFWriter`, with another number of layers where one is given."""
        ...


def hf_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor, without `.weight`.

    `blk.0.attn_q.weight` → `model.layers.0.self_attn.q_proj`.

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


def rotary_heads(name: str, source: Source) -> int | None:
    """The number of heads whose rows llama.cpp permutes in this tensor, or None where it permutes none."""
    if name.endswith(".attn_q.weight"):
        return source.heads
    return source.kv_heads if name.endswith(".attn_k.weight") else None
