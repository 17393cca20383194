"""Labelled rows as token ids, through the renderer that every backend uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from smolcls import prompt
from smolcls.data.rows import Row
from smolcls.errors import InputError
from smolcls.task import Task

IGNORED = -100  # torch's cross-entropy leaves this label out

Example = dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class Encoder:
    """What all rows of a task share, in tokens.

    Attributes:
        task: the task.
        tokenizer: transformers' tokenizer of the base.
        prefix: the frame before the text.
        suffix: the frame after it.
        answers: each label with the end of the turn.
    """

    task: Task
    tokenizer: Any
    prefix: list[int]
    suffix: list[int]
    answers: Mapping[str, list[int]]

    @classmethod
    def of(cls, task: Task, tokenizer: Any) -> Encoder:
        """The encoder of a task for a tokenizer."""
        end = encode_frame(prompt.END_OF_TURN, tokenizer)
        answers = {name: encode_text(name, tokenizer) + end for name in task.names}
        prefix, suffix = encode_frame(prompt.prefix(task), tokenizer), encode_frame(prompt.suffix(), tokenizer)
        return cls(task, tokenizer, prefix, suffix, answers)

    def examples(self, rows: Iterable[Row], limit: int | None = None) -> list[Example]:
        """Examples for the trainer: `input_ids` without the prefix, and `labels`, which are -100 off the answer.

        The parts are tokenised one by one and joined, as the backends do it; only the frame's own special
        tokens are parsed.

        Args:
            limit: rows that are longer, the prefix included, are left out: cut ones would teach cut texts.

        Raises:
            InputError: a row's label is not the task's, or its text is empty.
        """
        made = [self._example(row, number) for number, row in enumerate(rows, start=1)]
        room = None if limit is None else limit - len(self.prefix)
        return made if room is None else [item for item in made if len(item["input_ids"]) <= room]

    def _example(self, row: Row, number: int) -> Example:
        if row.label not in self.answers:
            raise InputError(f"Row {number} has the label {row.label!r}; expected one of {', '.join(self.task.names)}.")
        asked = encode_text(prompt.render(self.task, row.text).text, self.tokenizer) + self.suffix
        answer = self.answers[row.label]
        return {"input_ids": asked + answer, "labels": [IGNORED] * len(asked) + answer}


def encode_frame(text: str, tokenizer: Any) -> list[int]:
    """Tokens of a part of the frame; its special tokens are parsed."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_text(text: str, tokenizer: Any) -> list[int]:
    """Tokens of a text or a label; no special token is parsed."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
