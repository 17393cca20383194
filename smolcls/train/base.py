"""The base model of a training run: where it lies, whether it can be exported, and loading it."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smolcls import build, prompt
from smolcls.errors import ModelError, require
from smolcls.export.layers import replication
from smolcls.scan import scan


def transformers_library() -> Any:
    """The module `transformers`.

    Raises:
        MissingExtraError: it is not installed.
    """
    return require("transformers", extra="train", purpose="Training")


def base_path(base: str | Path) -> Path:
    """The GGUF file or the Hugging Face folder of a base; a Hub id is downloaded.

    Raises:
        MissingExtraError, ModelError, ConfigError: as the message says.
    """
    return build.base_path(base)


def check_exportable(path: Path, keep_layers: int | str | None = None) -> None:
    """Raise now for a base whose export would fail after hours of training.

    Raises:
        ModelError: the base is of another family, or damaged.
        ConfigError: it has not the layers that are to be kept.
    """
    from smolcls.export import gguf

    source = gguf.open_source(path)
    source.write_metadata(_Nowhere())
    replication(keep_layers, source.layers)


class _Nowhere:
    """A GGUF writer that writes nothing: what the export cannot express raises on the way to it."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def read_tokenizer(path: Path) -> Any:
    """transformers' tokenizer of a base.

    Raises:
        ModelError: its vocabulary has no token for the end of a turn.
    """
    transformers = transformers_library()
    if path.is_dir():
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(path))
        mend_splitting(path, tokenizer)
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        if scan(path).metadata.get("tokenizer.ggml.pre") == "smollm":
            split_digits(tokenizer)
    if len(tokenizer(prompt.END_OF_TURN, add_special_tokens=False)["input_ids"]) != 1:
        raise ModelError(
            f"{path}: the vocabulary has no token {prompt.END_OF_TURN}; smolcls needs a base with ChatML's tokens, "
            "such as SmolLM2-Instruct."
        )
    return tokenizer


def load_model(path: Path, **options: Any) -> Any:
    """The causal language model of a base, a GGUF file dequantised.

    Args:
        options: of transformers' `from_pretrained`, such as `dtype`.
    """
    transformers = transformers_library()
    if path.is_dir():
        return transformers.AutoModelForCausalLM.from_pretrained(str(path), **options)
    settings = transformers.GgufConfig(gguf_file=path.name, dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, quantization_config=settings, **options
    )


def mend_splitting(folder: Path, tokenizer: Any) -> None:
    """Put the splitting of `tokenizer.json` back, which transformers rebuilds for some classes without the digits.

    Remove when `AutoTokenizer.from_pretrained` keeps it for `GPT2Tokenizer`, which SmolLM2 names.
    """
    tokenizers = require("tokenizers", extra="train", purpose="Training")
    file = folder / "tokenizer.json"
    if file.is_file():
        own = tokenizers.Tokenizer.from_buffer(file.read_bytes())
        tokenizer.backend_tokenizer.pre_tokenizer = own.pre_tokenizer


def split_digits(tokenizer: Any) -> None:
    """Put SmolLM2's digit splitting back, which transformers loses when it reads a GGUF.

    Remove when `AutoTokenizer.from_pretrained(gguf_file=…)` keeps `Digits(individual_digits=True)`.
    """
    splitters = require("tokenizers", extra="train", purpose="Training").pre_tokenizers
    tokenizer.backend_tokenizer.pre_tokenizer = splitters.Sequence(
        [splitters.Digits(individual_digits=True), splitters.ByteLevel(add_prefix_space=False)]
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars, log lines or warnings of the libraries that train; what was set before is set again."""
    transformers = transformers_library()
    own = transformers.utils.logging
    level, bars = own.get_verbosity(), own.is_progress_bar_enabled()
    others = [logging.getLogger(name) for name in ("accelerate", "peft", "trl", "datasets", "torch")]
    levels = [log.level for log in others]
    loader: Any = require("transformers.modeling_gguf_pytorch_utils", extra="train", purpose="Training")
    bar = loader.tqdm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own.set_verbosity(own.CRITICAL)
        own.disable_progress_bar()
        loader.tqdm = lambda items, **_: items  # drawn past transformers' own switch
        for log in others:
            log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for log, former in zip(others, levels, strict=True):
                log.setLevel(former)
            loader.tqdm = bar
            own.set_verbosity(level)
            if bars:
                own.enable_progress_bar()
