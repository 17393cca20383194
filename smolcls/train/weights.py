"""Adapter and merged model as folders of safetensors files in F16, written tensor by tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smolcls.errors import ModelError
from smolcls.export import lora
from smolcls.export.gguf import open_source
from smolcls.export.llama import Tensor, hf_name
from smolcls.export.safetensors import SafetensorsFile
from smolcls.files import read_json, replacing, write_text

# What a Hugging Face folder holds beside its weights.
_SMALL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip


def save_adapter(checkpoint: Path, folder: Path) -> None:
    """Copy a checkpoint's LoRA adapter in F16: half the size, and what it changes is merged into F16 anyway.

    Raises:
        ModelError: the checkpoint holds no LoRA adapter, or values that F16 cannot hold.
    """
    lora.LoraAdapter(checkpoint)
    weights = SafetensorsFile(checkpoint / lora.WEIGHTS)
    tensors = [
        Tensor(name, weights.shape(name), lambda name=name: weights.read(name))  # type: ignore[misc]
        for name in sorted(weights.names)
    ]
    write_safetensors(folder / lora.WEIGHTS, tensors)
    config = {**read_json(checkpoint / lora.CONFIG), "inference_mode": True}
    # Where the base lay while training is of no use elsewhere, and may name the user's home.
    if Path(str(config.get("base_model_name_or_path"))).exists():
        config["base_model_name_or_path"] = None
    write_text(folder / lora.CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_merged(
    base: Path, adapter: Path, folder: Path, *, progress: Callable[[int, int], None] = lambda *_: None
) -> None:
    """Write base and adapter, merged in float32 and rounded to F16, as a folder that transformers loads.

    Of the layers those are written that the adapter was trained on.

    Raises:
        ModelError: the adapter does not fit the base.
    """
    merging = lora.LoraAdapter(adapter)
    source = merging.base_of(open_source(base))

    def merged(tensor: Tensor) -> Tensor:
        name = hf_name(tensor.name)
        return Tensor(f"{name}.weight", tensor.shape, lambda: merging.add_to(name, tensor.read()))

    tensors = [merged(tensor) for tensor in source.tensors()]
    write_safetensors(folder / "model.safetensors", tensors, progress=progress)
    if base.is_dir():
        for name in _SMALL_FILES:
            if (base / name).is_file():
                with replacing(folder / name) as temporary:
                    shutil.copyfile(base / name, temporary)
    else:
        _describe_gguf(base, folder)
    content = read_json(folder / "config.json")
    content.pop("torch_dtype", None)  # dtype's name up to transformers 4.55
    content |= {"num_hidden_layers": source.layers, "dtype": "float16"}
    write_text(folder / "config.json", json.dumps(content, indent=2) + "\n")


def write_safetensors(
    path: Path, tensors: Sequence[Tensor], *, progress: Callable[[int, int], None] = lambda *_: None
) -> None:
    """Write tensors in F16, one at a time in memory, whole or not at all.

    Format: https://github.com/huggingface/safetensors#format

    Raises:
        ModelError: a value is not finite in F16.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + 2 * int(np.prod(tensor.shape, dtype=np.int64))
        header[tensor.name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for done, tensor in enumerate(tensors, start=1):
            stream.write(_f16(tensor).tobytes())
            progress(done, len(tensors))


def _f16(tensor: Tensor) -> npt.NDArray[np.float16]:
    values = tensor.read()
    with np.errstate(over="ignore"):
        rounded: npt.NDArray[np.float16] = values.astype("<f2")
    if not np.isfinite(rounded).all():
        raise ModelError(f"The tensor {tensor.name} holds values that F16 cannot hold; the training went astray.")
    return rounded


def _describe_gguf(base: Path, folder: Path) -> None:
    """Configuration and tokenizer of a GGUF base, as transformers reads them."""
    from smolcls.train.base import quiet, read_tokenizer, transformers_library

    transformers = transformers_library()
    with quiet():
        config = transformers.AutoConfig.from_pretrained(str(base.parent), gguf_file=base.name)
        write_text(folder / "config.json", json.dumps(config.to_dict(), indent=2, default=str) + "\n")
        read_tokenizer(base).save_pretrained(str(folder))
