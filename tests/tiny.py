"""Helpers around the tiny model: adapters for it, its weights, and processes of their own to try things in."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from contract import load_tiny, write_safetensors, write_tiny_folder, write_tiny_gguf

from smolcls import BackendError, Calibration, Classifier, Task, build
from smolcls.calibration import log_softmax

if TYPE_CHECKING:
    from smolcls.backends.llamacpp import LlamaCppClassifier

HAS_LLAMA_CPP = all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf", "filelock"))
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnx", "tokenizers", "gguf", "filelock"))
TORCH = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None,
    reason="needs the extra transformers",
)
PEFT = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs the extra train")
BUNDLED = pytest.mark.skipif(not build.has_bundled_base(), reason="needs the extra local")

#: Byte sequences of the tiny model's vocabulary: shared beginnings, one label that begins others, a forced start.
SPREAD = Task(["card_lost", "card_stolen", "card", "carp", "dog", "do"], max_text_bytes=200)
FORCED = Task(["card_lost", "card_stolen", "card_not_working_abroad"], max_text_bytes=200)
#: The linear layers that an adapter may change.
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def tiny_classifier(path: Path, **options: Any) -> LlamaCppClassifier:
    """The llama.cpp backend on a tiny model."""
    from smolcls.backends.llamacpp import LlamaCppClassifier

    made = load_tiny(path, **options)
    assert isinstance(made, LlamaCppClassifier)
    return made


def write_tiny_onnx(path: Path, **options: Any) -> Path:
    """Write the tiny model as an ONNX file; the GGUF in F16 that it is made of lies beside it."""
    from smolcls.export import onnx
    from smolcls.export.gguf import GgufSource

    onnx.write(GgufSource(write_tiny_gguf(path.with_suffix(".gguf"), **options)), path)
    return path


def run(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, with the user's settings for OpenMP taken away."""
    kept = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        # With a backtrace llama.cpp would start a debugger before it aborts.
        env={**kept, "GGML_NO_BACKTRACE": "1", **environment},
        check=False,
    )


def fitted(task: Task, backend: str, temperature: float = 2.0) -> Calibration:
    return Calibration(temperature, task.fingerprint, "", backend, 100, 0.0, 0.0)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def weights(path: Path) -> dict[str, Any]:
    """A GGUF's weights under Hugging Face's names and in their order, as float32."""
    from smolcls.export.gguf import GgufSource
    from smolcls.export.llama import hf_name

    return {hf_name(tensor.name): tensor.read() for tensor in GgufSource(path).tensors()}


def save_llama(folder: Path, **options: Any) -> Any:
    """A random Llama with a byte-level BPE tokenizer, saved by transformers itself; returns the model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    write_tiny_folder(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    for file in folder.iterdir():
        file.unlink()
    torch.manual_seed(5)
    settings = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": True, **options,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**settings)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def write_adapter(folder: Path, base: Path, *, modules: tuple[str, ...] = LINEAR, rank: int = 4, **config: Any) -> Path:
    """A LoRA adapter as PEFT saves it, with random matrices, for a tiny model's folder."""
    import numpy as np

    from smolcls.export.safetensors import SafetensorsFile

    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none", "init_lora_weights": True, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    file, random = SafetensorsFile(base / "model.safetensors"), np.random.default_rng(3)
    tensors = {}
    for name in file.names:
        if name.removesuffix(".weight").rpartition(".")[2] in modules:
            rows, columns = file.shape(name)
            at = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{at}.lora_A.weight"] = random.normal(0, 0.1, (rank, columns)).astype("<f4")
            tensors[f"{at}.lora_B.weight"] = random.normal(0, 0.1, (rows, rank)).astype("<f4")
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


def replace_tensors(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the tensors of a tiny model's folder in place."""
    from smolcls.export.safetensors import SafetensorsFile

    file = SafetensorsFile(folder / "model.safetensors")
    tensors = {name: file.read(name) for name in file.names}
    change(tensors)
    write_safetensors(folder / "model.safetensors", tensors)


def label_log_probabilities(
    labels: list[list[int]], logits: Callable[[tuple[int, ...], list[int]], list[float]]
) -> list[float]:
    """Log-probabilities of labels, label by label and token by token: no trie.

    Args:
        labels: each one's tokens, the end of the turn last.
        logits: the logits that some candidates have after a label's beginning.
    """
    found = []
    for label in labels:
        total = 0.0
        for depth, token in enumerate(label):
            before = tuple(label[:depth])
            allowed = sorted({other[depth] for other in labels if tuple(other[:depth]) == before})
            if len(allowed) > 1:
                total += log_softmax(logits(before, allowed))[allowed.index(token)]
        found.append(total)
    return found


def logits(path: Path, tokens: list[int]) -> Any:
    """llama.cpp's logits after every token."""
    import numpy as np

    from smolcls import native

    lib = native.llama()
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 256
    parameters.n_threads = parameters.n_threads_batch = 1
    context = lib.llama_init_from_model(model, parameters)
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    for position, token in enumerate(tokens):
        batch.token[position], batch.pos[position], batch.n_seq_id[position] = token, position, 1
        batch.seq_id[position][0], batch.logits[position] = 0, True
    batch.n_tokens = len(tokens)
    try:
        assert lib.llama_decode(context, batch) == 0
        size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        rows = [lib.llama_get_logits_ith(context, index) for index in range(len(tokens))]
        return np.stack([np.ctypeslib.as_array(row, shape=(size,)).copy() for row in rows])
    finally:
        lib.llama_batch_free(batch)
        lib.llama_free(context)
        lib.llama_model_free(model)


def check_fork(spec: str, library: str) -> None:
    """A process that is forked from one that has classified gets errors from this backend, and does not hang."""
    ended = run(
        """
        import os, sys, smolcls
        classifier = smolcls.load(sys.argv[1], threads=2)
        classifier.classify("hi")
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            for attempt in (lambda: classifier.classify("hi"), lambda: smolcls.load(sys.argv[1])):
                try:
                    attempt()
                except smolcls.BackendError as error:
                    os.write(1, f"{error}\\n".encode())
            os._exit(0)
        os.waitpid(child, 0)
        print(classifier.classify("hi").label is not None)
        """,
        spec,
    )
    message = f"{library} cannot compute in a process that was forked after it was used."
    assert [line.startswith(message) for line in ended.stdout.splitlines()] == [True, True, False], ended.stderr
    assert ended.stdout.endswith("True\n")


def check_closing(classifier: Classifier) -> None:
    """Closed twice under the calls of other threads: an error of theirs, each time the same one."""
    started, outcomes = threading.Barrier(5), []

    def work() -> None:
        started.wait()
        try:
            for _ in range(10_000):
                classifier.classify_batch(["hi"] * 40)
        except BackendError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    classifier.close()
    classifier.close()
    for thread in threads:
        thread.join()
    assert outcomes == ["This classifier was closed; make a new one."] * 4
