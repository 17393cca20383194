"""A tiny base, rows that it can learn, and settings that train it in seconds."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest
from contract import write_tiny_folder

from smolcls.train import TrainConfig, Watcher

#: Looked for without importing: torch is to be loaded by the code under test.
needs_training = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "peft", "accelerate", "llama_cpp")),
    reason="needs the extra train",
)
LABELS = ("command", "prompt", "workflow")
SETTINGS: dict[str, Any] = {
    "engine": "shared",
    "batch": 8,
    "accumulation": 1,
    "epochs": 8.0,
    "learning_rate": 0.01,
    "warmup": 50,
    "evaluations": 3,
    "patience": 0,
    "rank": 16,
    "alpha": 32,
    "pass_tokens": 400,
}


def rows(count: int = 120) -> list[dict[str, str]]:
    """Rows that even a random model of 64 numbers a token learns to tell apart, in part by their length."""
    generator = random.Random(1)

    def words(least: int, most: int) -> str:
        sizes = [generator.randint(3, 7) for _ in range(generator.randint(least, most))]
        return " ".join("".join(generator.choices("abdegiklmnoprstu", k=size)) for size in sizes)

    made = []
    for number in range(count):
        label = LABELS[number % 3]
        text = {"command": f"/{words(1, 1)}", "prompt": f"what is {words(2, 3)}?", "workflow": f"build {words(9, 14)}"}
        made.append({"text": text[label], "label": label})
    return made


def write_rows(path: Path, content: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def config(folder: Path, *, out: str = "run", **changes: Any) -> TrainConfig:
    """Settings of a run below `folder`, which gets a base and rows where it has none."""
    base, data = folder / "base", folder / "rows.jsonl"
    if not base.exists():
        write_tiny_folder(base)
        write_rows(data, rows())
    return TrainConfig(**{"base": base, "data": data, "out": folder / out, **SETTINGS, **changes})


class Listener(Watcher):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int, str]] = []
        self.remarks: list[str] = []

    def progress(self, step: str, done: int, total: int, note: str = "") -> None:
        self.steps.append((step, done, total, note))

    def say(self, remark: str) -> None:
        self.remarks.append(remark)
