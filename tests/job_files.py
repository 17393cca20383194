"""Files of a large job, and classifiers for it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import smolcls
from smolcls.backends.fake import Answer, FakeClassifier

FAKE = functools.partial(smolcls.load, "fake:workflow")
OUT = Path("answers.jsonl")
BESIDE = Path("answers.jsonl.job.json")


def write_texts(count: int, path: str = "texts.txt") -> Path:
    made = Path(path)
    made.write_text("".join(f"text {number}\n" for number in range(count)), encoding="utf-8")
    return made


def answers(path: Path = OUT) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def faking(answer: Callable[[str], Answer]) -> Callable[[], FakeClassifier]:
    return lambda: FakeClassifier(answer)
