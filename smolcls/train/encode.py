"""Labelled rows as token ids, through the renderer that every backend uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from smolcls import prompt
from smolcls.errors import InputError
from smolcls.task import Task

IGNORED = -100  # torch's cross-entropy leaves this label out


def encode(task: Task, rows: Iterable[Mapping[str, Any]], tokenizer: Any) -> list[dict[str, list[int]]]:
    """Examples for the trainer: `input_ids` without the frame's prefix, and `labels`, which are -100 off the answer.

    The parts are tokenised one by one and joined, as the backends do it; only the frame's own special
    tokens are parsed. The answer is the label and the end of the turn.

    Raises:
        InputError: a row's label is not the task's, or its text is empty.
    """
    after, end = encode_frame(prompt.suffix(), tokenizer), encode_frame(prompt.END_OF_TURN, tokenizer)
    answers = {name: encode_text(name, tokenizer) + end for name in task.names}
    examples = []
    for number, row in enumerate(rows, start=1):
        if row["label"] not in answers:
            raise InputError(f"Row {number} has the label {row['label']!r}; expected one of {', '.join(task.names)}.")
        asked = encode_text(prompt.render(task, row["text"]).text, tokenizer) + after
        answer = answers[row["label"]]
        examples.append({"input_ids": asked + answer, "labels": [IGNORED] * len(asked) + answer})
    return examples


def encode_frame(text: str, tokenizer: Any) -> list[int]:
    """Tokens of a part of the frame; its special tokens are parsed."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_text(text: str, tokenizer: Any) -> list[int]:
    """Tokens of a text or a label; no special token is parsed."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
