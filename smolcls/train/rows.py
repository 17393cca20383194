"""Labelled rows: reading them, and holding some of them out.

A row is a JSON object with `text`, `label` and perhaps `family`; rows of one family (variations of one text)
stay on one side of every split, or the held-out part would measure memory.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from smolcls.calibration import MIN_ROWS
from smolcls.errors import ConfigError, InputError
from smolcls.files import sha256, write_text
from smolcls.task import DEFAULT_TASK, Task
from smolcls.train.config import TrainConfig
from smolcls.train.run import SPLITS, Run

Row = Mapping[str, Any]

_HELD_OUT = 0.1  # share of the rows for validation, and as much for the test


def read_rows(path: Path, task: Task) -> list[Row]:
    """The rows of a JSONL file.

    Raises:
        InputError: the file cannot be read, holds no row, or a row has no text or a label that is not the task's.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}. Expected a JSONL file of rows.") from error
    rows = [_row(line, f"{path}, line {number}", task) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise InputError(f"{path} holds no rows. Expected lines such as: " + '{"text": "…", "label": "…"}')
    return rows


def gather(config: TrainConfig, task: Task) -> dict[str, list[Row]]:
    """The rows of each split, from the files that the configuration names.

    Raises:
        InputError: as `read_rows`.
        ConfigError: the shipped rows were asked for with another task.
    """
    if config.data == "shipped":
        if task != Task.load(DEFAULT_TASK):
            raise ConfigError(
                f"The shipped rows belong to the task {DEFAULT_TASK}; name a file of rows for {task.name} with --data."
            )
        folder = Path(str(files("smolcls") / "data" / DEFAULT_TASK.replace("-", "_")))
        return {split: read_rows(folder / f"{split}.jsonl", task) for split in SPLITS}
    given = {"validation": config.validation, "test": config.test}
    rows = read_rows(Path(config.data), task)
    held = {name: read_rows(path, task) for name, path in given.items() if path is not None}
    parts = split(rows, [name for name in given if name not in held], seed=config.seed)
    return {**parts, **held}


def split(rows: Sequence[Row], held: Sequence[str], *, seed: int) -> dict[str, list[Row]]:
    """`train` and the named held-out parts, by family, each with about the same share of every label.

    Families are taken in an order that their names and the seed decide, so a row that is added later moves no
    other one between parts. A validation part has `MIN_ROWS` rows where there are enough to fit a temperature.

    Raises:
        InputError: there are too few families to hold any out.
    """
    share = dict.fromkeys(held, _HELD_OUT)
    if "validation" in share:
        share["validation"] = max(_HELD_OUT, min(0.3, MIN_ROWS * 1.1 / len(rows)))
    families: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        families[_family(row)].append(row)
    # The label that most rows of a family have; a family of minimal pairs has several.
    strata: dict[str, list[str]] = defaultdict(list)
    for family, members in families.items():
        strata[Counter(row["label"] for row in members).most_common(1)[0][0]].append(family)
    parts: dict[str, list[Row]] = {name: [] for name in ("train", *held)}
    for names in strata.values():
        total = sum(len(families[name]) for name in names)
        ordered = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        _deal([families[name] for name in ordered], {name: part * total for name, part in share.items()}, parts)
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise InputError(
            f"{len(rows)} rows in {len(families)} families are too few to hold some out: {empty[0]} would be empty. "
            "Add rows, or name files with --validation and --test."
        )
    return parts


def _deal(families: Iterable[list[Row]], quotas: Mapping[str, float], parts: dict[str, list[Row]]) -> None:
    """Give each family to the first part whose quota it does not overfill, else to `train`."""
    room = dict(quotas)
    for members in families:
        name = next((name for name, left in room.items() if len(members) <= left + 0.5), "train")
        if name in room:
            room[name] -= len(members)
        parts[name] += members


def write_rows(run: Run, parts: Mapping[str, Sequence[Row]]) -> None:
    """Write each split into the run's folder."""
    for name, rows in parts.items():
        write_text(run.rows(name), "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows))


def fingerprint(run: Run, task: Task) -> dict[str, Any]:
    """For each split its number of rows, of each label too, and the SHA-256 of its file."""
    found = {}
    for name in SPLITS:
        counts = Counter(str(row["label"]) for row in read_rows(run.rows(name), task))
        found[name] = {
            "rows": counts.total(),
            "labels": {label: counts[label] for label in task.names},
            "sha256": sha256(run.rows(name)),
        }
    return found


def _family(row: Row) -> str:
    family = row.get("family")
    return str(family) if family is not None else " ".join(str(row["text"]).lower().split())


def _row(line: str, where: str, task: Task) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: it is not JSON ({error}).") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
        raise InputError(f'{where}: expected an object with a non-empty "text"; found {line[:80]}')
    if row.get("label") not in task.names:
        raise InputError(f"{where}: the label is {row.get('label')!r}; expected one of {', '.join(task.names)}.")
    return row
