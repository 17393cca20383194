"""The vocabulary of a Hugging Face folder as GGUF metadata: byte-level BPE, split as llama.cpp can split.

A tokenizer that llama.cpp would not follow exactly is refused: other tokens than in training would go
unnoticed until the answers are poor.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from smolcls.errors import ModelError
from smolcls.files import read_json

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # gguf.TokenType


def write_tokenizer(writer: Any, folder: Path, size: int, config: dict[str, Any]) -> None:
    """Add vocabulary, merges, special tokens and chat template to a `gguf.GGUFWriter`.

    Args:
        size: rows of the embedding matrix; ids without a token become unused ones.
        config: the folder's `config.json`, for the ids of special tokens.

    Raises:
        ModelError: the tokenizer is damaged, or one that llama.cpp does not split like.
    """
    content = model_json(folder / "tokenizer.json")
    try:
        name = _pre_tokenizer(content, folder)
        tokens, kinds = _tokens(content, size)
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{folder / 'tokenizer.json'} is damaged, or larger than the model: {error!r}.") from error
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    for key, add in (
        ("bos_token_id", writer.add_bos_token_id),
        ("eos_token_id", writer.add_eos_token_id),
        ("pad_token_id", writer.add_pad_token_id),
    ):
        if isinstance(config.get(key), int):
            add(config[key])
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))


def model_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model, or `ModelError`."""
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}. Expected a model folder saved by transformers.") from error


def _tokens(content: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    tokens, kinds = [f"[PAD{index}]" for index in range(size)], [_UNUSED] * size
    for token, index in content["model"]["vocab"].items():
        tokens[index], kinds[index] = token, _NORMAL
    for added in content.get("added_tokens") or []:
        kind = _CONTROL if added["special"] else _USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], kind
    return tokens, kinds


def _pre_tokenizer(content: dict[str, Any], folder: Path) -> str:
    """llama.cpp's name of the pre-tokenizer: `smollm` splits digits one by one before the byte level."""
    splitter = content.get("pre_tokenizer") or {}
    steps = splitter.get("pretokenizers", [splitter])
    kinds = [step.get("type") for step in steps]
    if content["model"].get("type") != "BPE" or "ByteLevel" not in kinds:
        raise ModelError(f"{folder} has a tokenizer of type {content['model'].get('type')!r}; expected byte-level BPE.")
    level = steps[-1]
    exact = not level.get("add_prefix_space") and level.get("use_regex", True) and not content.get("normalizer")
    if exact and kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if exact and kinds == ["ByteLevel"]:
        return "gpt-2"
    raise ModelError(
        f"{folder} prepares texts by {json.dumps(content.get('normalizer'))} and {json.dumps(splitter)}, which the "
        "GGUF export does not know; expected SmolLM2's Digits + ByteLevel, or ByteLevel alone, and no normaliser."
    )
