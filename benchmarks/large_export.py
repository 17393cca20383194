"""Time and memory of the export at the size of SmolLM2-1.7B, on random weights: nothing is downloaded.

    python benchmarks/large_export.py /tmp/large

Writes a model folder of the 1.7B's shape in shards of about 1 GB and an adapter for it (8 GB of disk in all), exports
it with the adapter merged, quantises, and asks llama.cpp for its speed on the result. Each step runs in a process of
its own; what it held at most beside the files that it maps is read from the kernel (Linux).
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import smolcls
from smolcls.build import bundled_base
from smolcls.export import gguf, quantize
from smolcls.export.lora import LoraAdapter
from smolcls.train.base import read_tokenizer

HIDDEN, INNER, LAYERS, HEADS, VOCABULARY, RANK = 2048, 8192, 24, 32, 49152, 16
LAYERS_A_SHARD = 6
PROJECTIONS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def write_model(folder: Path) -> None:
    """A folder as transformers saves it, of random weights in F16."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(7)

    def weights(*shape: int) -> np.ndarray:
        return (draw.standard_normal(shape, dtype=np.float32) * 0.02).astype(np.float16)

    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "vocab_size": VOCABULARY, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 130000.0, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    read_tokenizer(bundled_base()).save_pretrained(folder)
    ones = np.ones(HIDDEN, dtype=np.float16)
    outer = {"model.embed_tokens.weight": weights(VOCABULARY, HIDDEN), "model.norm.weight": ones}
    save_file(outer, folder / "model-0.safetensors")
    for first in range(0, LAYERS, LAYERS_A_SHARD):
        shard: dict[str, np.ndarray] = {}
        for layer in range(first, first + LAYERS_A_SHARD):
            stem = f"model.layers.{layer}"
            shard |= {f"{stem}.{name}.weight": weights(*shape) for name, shape in PROJECTIONS.items()}
            shard |= {f"{stem}.{name}_layernorm.weight": ones for name in ("input", "post_attention")}
        save_file(shard, folder / f"model-{first + 1}.safetensors")


def write_adapter(folder: Path) -> None:
    """A LoRA adapter for it, of random weights, in PEFT's format."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(8)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "target_modules": sorted(
        name.rpartition(".")[2] for name in PROJECTIONS
    )}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors: dict[str, np.ndarray] = {}
    for layer in range(LAYERS):
        for name, (out, inner) in PROJECTIONS.items():
            stem = f"base_model.model.model.layers.{layer}.{name}"
            for part, shape in (("lora_A", (RANK, inner)), ("lora_B", (out, RANK))):
                drawn = draw.standard_normal(shape, dtype=np.float32) * 0.01
                tensors[f"{stem}.{part}.weight"] = drawn.astype(np.float16)
    save_file(tensors, folder / "adapter_model.safetensors")


def export_f16(folder: Path) -> None:
    """Merge the adapter, tensor by tensor, into a GGUF file in F16."""
    gguf.write_f16(gguf.open_source(folder / "hf"), folder / "f16.gguf", adapter=LoraAdapter(folder / "adapter"))


def quantise(folder: Path) -> None:
    """Quantise it."""
    quantize.quantise(folder / "f16.gguf", folder / "model.gguf", "Q4_K_M")


def speed(folder: Path) -> None:
    """Answers of the finished file: the median latency of one text at a time."""
    texts = [f"rename the function get_user_{number} everywhere" for number in range(12)]
    with smolcls.load(f"llamacpp:{folder / 'model.gguf'}") as classifier:
        classifier.classify("warm up")
        taken = []
        for text in texts:
            began = time.perf_counter()
            classifier.classify(text)
            taken.append(time.perf_counter() - began)
    print(f"  one text at a time: median {sorted(taken)[len(taken) // 2] * 1000:.0f} ms")


def measured(work: Callable[[Path], None], folder: Path) -> None:
    """Run a step in a process of its own; print its time, and the most memory it held of its own and in all."""
    began = time.perf_counter()
    process = multiprocessing.get_context("spawn").Process(target=work, args=(folder,))
    process.start()
    own = whole = 0
    while process.is_alive():
        held = _memory(process.pid)
        own, whole = max(own, held.get("RssAnon", 0)), max(whole, held.get("VmHWM", 0))
        process.join(0.05)
    print(
        f"{work.__name__}: {time.perf_counter() - began:.0f} s, own memory {own / 1e6:.2f} GB, with mapped files "
        f"{whole / 1e6:.2f} GB"
    )
    if process.exitcode:
        raise SystemExit(f"{work.__name__} failed")


def _memory(pid: int | None) -> dict[str, int]:
    """Kilobytes, as the kernel tells them; nothing once the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}


def main(folder: Path) -> None:
    write_model(folder / "hf")
    write_adapter(folder / "adapter")
    largest = max(path.stat().st_size for path in (folder / "hf").glob("*.safetensors"))
    print(f"largest shard {largest / 1e9:.2f} GB")
    for work in (export_f16, quantise, speed):
        measured(work, folder)
    for name in ("f16.gguf", "model.gguf"):
        print(f"{name}: {(folder / name).stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
