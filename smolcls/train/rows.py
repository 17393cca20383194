"""The rows of a run: where they come from, which are held out, and where the run keeps them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smolcls.calibration import MIN_ROWS
from smolcls.data.rows import SPLITS, Row, read_rows, shipped, write_rows
from smolcls.data.split import split
from smolcls.errors import ConfigError, InputError
from smolcls.files import sha256
from smolcls.task import DEFAULT_TASK, Task
from smolcls.train.config import TrainConfig
from smolcls.train.run import Run

_HELD_OUT = 0.1  # share of the rows for validation, and as much for the test


def gather(config: TrainConfig, task: Task) -> dict[str, Sequence[Row]]:
    """The rows of each split, from the files that the configuration names; what is not named is held out of `data`.

    Raises:
        InputError: a file cannot be read, a label is not the task's, or there are too few rows to hold some out.
        ConfigError: the shipped rows were asked for with another task.
    """
    if config.data == "shipped":
        if task != Task.load(DEFAULT_TASK):
            raise ConfigError(
                f"The shipped rows belong to the task {DEFAULT_TASK}; name a file of rows for {task.name} with --data."
            )
        return {name: shipped(DEFAULT_TASK, name) for name in SPLITS}
    rows = _read(Path(config.data), task)
    given = {"validation": config.validation, "test": config.test}
    held = {name: _read(path, task) for name, path in given.items() if path is not None}
    shares = {name: _share(name, len(rows)) for name in given if name not in held}
    parts: dict[str, Sequence[Row]] = {**(_hold_out(rows, shares) if shares else {"train": rows}), **held}
    empty = [name for name in SPLITS if not parts[name]]
    if empty:
        raise InputError(
            f"{config.data} has {len(rows)} rows, too few to hold some out: {empty[0]} would be empty. Add rows, or "
            "name files with --validation and --test."
        )
    return parts


def write(run: Run, parts: Mapping[str, Sequence[Row]]) -> None:
    """Write each split into the run's folder."""
    for name, rows in parts.items():
        write_rows(run.rows(name), rows)


def fingerprint(run: Run, task: Task) -> dict[str, Any]:
    """For each split its number of rows, of each label too, and the SHA-256 of its file."""
    found = {}
    for name in SPLITS:
        counts = Counter(row.label for row in read_rows(run.rows(name)))
        labels = {label: counts[label] for label in task.names}
        found[name] = {"rows": counts.total(), "labels": labels, "sha256": sha256(run.rows(name))}
    return found


def _hold_out(rows: Sequence[Row], shares: Mapping[str, float]) -> dict[str, Sequence[Row]]:
    parts = split(rows, validation=shares.get("validation", 0.0), test=shares.get("test", 0.0)).parts
    return {name: part for name, part in parts.items() if name == "train" or name in shares}


def _share(name: str, rows: int) -> float:
    # A temperature needs its rows, as long as most are left for training.
    return max(_HELD_OUT, min(0.3, 1.2 * MIN_ROWS / rows)) if name == "validation" else _HELD_OUT


def _read(path: Path, task: Task) -> list[Row]:
    rows = read_rows(path)
    for number, row in enumerate(rows, start=1):
        if row.label not in task.names:
            raise InputError(
                f"{path}, row {number}: the label is {row.label!r}; expected one of {', '.join(task.names)}."
            )
    if not rows:
        raise InputError(f"{path} holds no rows. Expected lines such as: " + '{"text": "…", "label": "…"}')
    return rows
