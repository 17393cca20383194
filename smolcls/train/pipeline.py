"""The way from rows to a model that answers: the steps in order, and no logic of their own."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path

from smolcls.data.rows import SPLITS, read_rows
from smolcls.errors import ConfigError, ModelError, require
from smolcls.export import modelfile
from smolcls.export.quantize import check_kind
from smolcls.files import write_text
from smolcls.native import llama
from smolcls.task import Task, as_task
from smolcls.train import engine, rows
from smolcls.train.base import base_path, check_exportable, quiet, read_tokenizer
from smolcls.train.config import LINEAR, ZERO_2, TrainConfig, settle, zero_2
from smolcls.train.encode import Encoder, Example
from smolcls.train.run import Run
from smolcls.train.steps import STEPS
from smolcls.train.watch import Watcher

# What every run needs to its end: a package that is missing is told of before hours of training.
_NEEDED = ("numpy", "gguf", "filelock", "torch", "transformers", "accelerate", "peft")
_NEEDED_BY_LINEAR = ("numpy", "filelock", "sklearn")


def train(
    config: TrainConfig,
    *,
    task: Task | str | Path | None = None,
    resume: bool = False,
    watcher: Watcher | None = None,
) -> Run:
    """Train a model and export it; returns its run's folder.

    Args:
        config: the settings.
        task: the task, its name or file; None is the shipped three-type task, or with `resume` the run's own.
        resume: go on with the run in `config.out`: its settings and rows are kept, finished steps are skipped.
        watcher: hears of progress.

    Raises:
        MissingExtraError: a package that training needs is not installed.
        ConfigError: the settings do not fit each other, or the run's that is resumed.
        InputError: the rows cannot be used.
        ModelError: the base cannot be used, or the training went nowhere; the message says what to try.
    """
    listener = watcher or Watcher()
    chosen = (Run(config.out).config() if resume else config).engine
    linear = chosen == LINEAR
    if chosen == "unsloth":  # it patches transformers and TRL, and must be imported before them
        require("unsloth", extra="unsloth", purpose="The engine unsloth")
    for package in _NEEDED_BY_LINEAR if linear else _NEEDED:
        require(package, extra="evaluate" if linear else "train", purpose="Training")
    # First, for torch then computes with the same OpenMP, whose workers `native` bids spin no longer than is good:
    # beside two busy processes on two cores, 384 rows took 90 seconds so, and 404 otherwise.
    if not linear:
        llama()
    try:
        run = _resumed(config, task) if resume else _started(config, as_task(task))
        with locked(run):
            if linear:
                return _fit_linear(run, listener)
            if not run.training.is_file():
                _fit(run, listener, resume=resume)
        # Under `accelerate launch` every process trains, and the first one exports.
        return run if _rank() > 0 else export(run, watcher=listener)
    except OSError as error:
        raise ModelError(
            f"A file of the run {config.out} cannot be read or written: {error}. A run takes about three times the "
            "size of the model in F16. What is done is kept: go on with --resume."
        ) from error


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
    if run.config().engine == LINEAR:
        raise ConfigError(f"{run.folder} holds a linear model, which is used as it is; there is nothing to export.")
    llama()  # first, as in `train`
    for package in ("numpy", "gguf", "filelock"):
        require(package, extra="train", purpose="The export")
    run.read(run.training.name)
    with locked(run):
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
        config: `base`, `out`, `data`, `validation` and `test` are needed; the rest is written down as given, but for
            `keep_layers`, which the checkpoint says itself.

    Raises:
        ConfigError, ModelError: as the message says.
    """
    from smolcls.export.lora import LoraAdapter

    made, kept = as_task(task), LoraAdapter(checkpoint).keep_layers
    if config.keep_layers is not None:
        raise ConfigError("A checkpoint says itself which layers it keeps (layer_replication); leave keep_layers out.")
    settled = settle(config, "shared" if config.engine == "auto" else config.engine)
    run = Run.start(replace(settled, keep_layers=kept), made)
    rows.write(run, rows.gather(config, made))
    write_text(run.training, json.dumps({"best": str(checkpoint.resolve())}, indent=2) + "\n")
    return export(run, watcher=watcher)


@contextlib.contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold a run's folder, and clear away what a killed process left half-written.

    Raises:
        ConfigError: another process holds it.
    """
    filelock = require("filelock", extra="train", purpose="Training")
    lock = filelock.FileLock(run.folder / f".lock-{_rank()}", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise ConfigError(f"Another process is working on {run.folder}. Wait for it, or name another --out.") from error
    try:
        for left_over in run.folder.rglob(".*.part"):
            left_over.unlink()
        yield
    finally:
        lock.release()


def _started(config: TrainConfig, task: Task) -> Run:
    """A new run's folder, after everything that can be refused before hours of training was looked at."""
    if (config.out / "config.json").exists():
        raise ConfigError(f"{config.out} holds a run. Go on with it by --resume, or name another --out.")
    if config.engine == LINEAR:
        settled = settle(config, LINEAR)
    else:
        modelfile.render(task, "model.gguf")
        base = base_path(config.base)
        settled = engine.with_precision(settle(config, engine.choose(config.engine, base)))
        check_kind(settled.quantisation)
        check_exportable(base, config.keep_layers)
    parts = rows.gather(config, task)
    run = Run(config.out)
    rows.write(run, parts)
    if settled.preset == "low-memory" and settled.engine != "shared":
        write_text(run.folder / ZERO_2, zero_2(settled))
    return Run.start(settled, task)


def _resumed(config: TrainConfig, task: Task | str | Path | None) -> Run:
    run = Run(config.out)
    stored = run.config()
    given = {item.name: getattr(config, item.name) for item in fields(config) if item.name not in ("out", "engine")}
    default = {item.name: item.default for item in fields(config)}
    for name, value in given.items():
        if value != default[name] and str(value) != str(getattr(stored, name)):
            raise ConfigError(
                f"{config.out} was started with {name} {getattr(stored, name)!r}; found {value!r}. Leave it out to go "
                "on, or start anew under another --out."
            )
    if task is not None and as_task(task) != run.task():
        raise ConfigError(f"{config.out} was started for another task; leave --task out to go on.")
    return run


def _fit(run: Run, watcher: Watcher, *, resume: bool) -> None:
    config, task = run.config(), run.task()
    base = base_path(config.base)
    engine.choose(config.engine, base)
    with quiet():
        encoder = Encoder.of(task, read_tokenizer(base))
    train_rows = _examples(run, "train", encoder, watcher)
    material = engine.Material(base, encoder, train_rows, _examples(run, "validation", encoder, watcher))
    trained = engine.fit(config, material, watcher, resume=resume)
    if _rank() > 0:
        return
    write_text(run.training, json.dumps(trained.to_dict(), indent=1) + "\n")


def _fit_linear(run: Run, watcher: Watcher) -> Run:
    from smolcls.train.linear import train_linear

    rows_of = {name: read_rows(run.rows(name)) for name in SPLITS}
    watcher.progress("fitting n-grams", 0, 1)
    train_linear(run.task(), rows_of["train"], rows_of["validation"], run.folder, test_rows=rows_of["test"])
    watcher.progress("fitting n-grams", 1, 1)
    return run


def _examples(run: Run, split: str, encoder: Encoder, watcher: Watcher) -> list[Example]:
    """The examples of a split.

    Raises:
        ConfigError: none is short enough.
    """
    limit = run.config().max_length
    read = read_rows(run.rows(split))
    made = encoder.examples(read, limit)
    if len(made) < len(read):
        watcher.say(f"{len(read) - len(made)} {split} rows are longer than {limit} tokens and left out.")
    if not made:
        raise ConfigError(f"All {len(read)} {split} rows are longer than {limit} tokens. Raise --max-length.")
    return made


def _rank() -> int:
    """The number of this process among those of `accelerate launch`; 0 where it is the only one."""
    return int(os.environ.get("RANK", "0"))
