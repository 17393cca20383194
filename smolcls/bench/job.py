"""What a worker is told to measure, and how it is written for the way to its process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Job:
    """One backend on some texts.

    Attributes:
        backend: its specification; `chain` and `chain:CHAIN` are routers.
        task: the task's name or file, or None for the shipped one.
        texts: to classify; at least one.
        batch_size: texts of a batch; 0 to find out what the backend answers, instead of how fast.
    """

    backend: str
    task: str | None
    texts: tuple[str, ...]
    batch_size: int = 0

    def write(self, path: Path) -> None:
        """Write it to a file."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read it from a file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**content, "texts": tuple(content["texts"])})
