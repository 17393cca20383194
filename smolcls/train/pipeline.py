"""The way from rows to a model that answers: the steps in order, and no logic of their own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from smolcls.errors import ConfigError, require
from smolcls.files import write_text
from smolcls.task import Task, as_task
from smolcls.train import rows
from smolcls.train.config import TrainConfig
from smolcls.train.run import Run
from smolcls.train.steps import STEPS
from smolcls.train.watch import Watcher


def export(run: Run, steps: Iterable[str] | None = None, *, watcher: Watcher | None = None) -> Run:
    """Do the export's steps: the named ones, or all that are not done.

    Raises:
        ConfigError: no such step, another process works on the run, or training has not ended.
        SmolclsError: a step failed; what it was to replace is as before.
    """
    chosen = None if steps is None else list(steps)
    unknown = [name for name in chosen or () if name not in STEPS]
    if unknown:
        raise ConfigError(f"No step {unknown[0]!r}; the steps are {', '.join(STEPS)}.")
    with locked(run):
        run.read(run.training.name)
        for step in STEPS.values():
            wanted = not step.is_done(run) if chosen is None else step.name in chosen
            if wanted:
                step.do(run, watcher or Watcher())
    return run


def export_checkpoint(
    checkpoint: Path, config: TrainConfig, *, task: Task | str | Path | None = None, watcher: Watcher | None = None
) -> Run:
    """Make a run's folder from a PEFT checkpoint that was trained elsewhere, and export it.

    Args:
        checkpoint: a folder with `adapter_config.json` and `adapter_model.safetensors`.
        config: `base`, `out`, `data`, `validation` and `test` are needed; the rest is written down.
    """
    made = as_task(task)
    run = Run.start(config, made)
    rows.write_rows(run, rows.gather(config, made))
    write_text(run.training, json.dumps({"best": str(checkpoint.resolve())}, indent=2) + "\n")
    return export(run, watcher=watcher)


@contextlib.contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold a run's folder, and clear away what a killed process left half-written.

    Raises:
        ConfigError: another process holds it.
    """
    filelock = require("filelock", extra="train", purpose="Training")
    lock = filelock.FileLock(run.folder / ".lock", timeout=0)
    try:
        with lock:
            for left_over in run.folder.rglob(".*.part"):
                left_over.unlink()
            yield
    except filelock.Timeout as error:
        raise ConfigError(f"Another process is working on {run.folder}. Wait for it, or name another --out.") from error
