"""Fine-tuning a LoRA adapter: the seam behind which the engines lie.

An engine is a module with one function, `make_trainer(job)`, that gives a trainer of transformers' kind. What
is the same for all of them is here: the arguments, resuming, and giving way when memory runs out.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from smolcls.errors import ConfigError, ModelError, require
from smolcls.files import read_json
from smolcls.train.base import quiet
from smolcls.train.config import TrainConfig, warmup_steps
from smolcls.train.encode import Encoder, Example
from smolcls.train.job import Job
from smolcls.train.order import arrange
from smolcls.train.run import CHECKPOINTS
from smolcls.train.watch import Watcher

MODULES = {
    "shared": "smolcls.train.shared_prefix",
    "trl": "smolcls.train.whole_rows",
    "unsloth": "smolcls.train.unsloth_engine",
}
_OUT_OF_MEMORY = re.compile(r"out of memory|allocate memory|not enough memory", re.IGNORECASE)
_STATE = "trainer_state.json"


@dataclass(frozen=True, slots=True)
class Trained:
    """What training left.

    Attributes:
        best: the folder of the checkpoint with the least validation loss, relative to the run's.
        steps: optimiser steps done.
        seconds: wall-clock time of this process's part.
        peak_memory_bytes: the most that this process held in memory.
        history: the trainer's log: losses, evaluations.
        expectations: what was expected, what came.
        remarks: what was changed by itself.
    """

    best: str
    steps: int
    seconds: float
    peak_memory_bytes: int
    history: list[dict[str, float]]
    expectations: list[dict[str, Any]]
    remarks: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Material:
    """What is trained: the base, and the examples."""

    base: Path
    encoder: Encoder
    train: Sequence[Example]
    validation: Sequence[Example]


def choose(engine: str, base: Path) -> str:
    """The engine that suits this machine and base, where `auto` leaves it open."""
    chosen = engine
    if engine == "auto":
        torch = require("torch", extra="train", purpose="Training")
        fused = base.is_dir() and importlib.util.find_spec("unsloth") is not None
        chosen = ("unsloth" if fused else "trl") if torch.cuda.is_available() else "shared"
    if chosen == "unsloth":
        # It patches transformers and TRL, and must be imported before them.
        require("unsloth", extra="unsloth", purpose="The engine unsloth")
    return chosen


def with_precision(config: TrainConfig) -> TrainConfig:
    """A settled configuration with no precision left open, for the engine that lets it be chosen."""
    if config.engine != "shared":
        if config.precision != "auto":
            raise ConfigError(f"The engine {config.engine} chooses its precision by itself; leave precision out.")
        return config
    if config.precision != "auto":
        return config
    torch = require("torch", extra="train", purpose="Training")
    if torch.cuda.is_available():
        able = torch.cuda.is_bf16_supported()
    else:  # an older torch does not tell what a CPU can do
        found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        able = found.get("avx512_bf16") or found.get("amx_bf16")
    return replace(config, precision="bfloat16" if able else "float32")


def fit(config: TrainConfig, material: Material, watcher: Watcher, *, resume: bool = False) -> Trained:
    """Train an adapter, from the last whole checkpoint where `resume` is set.

    Where memory runs out, a batch's rows are halved and its passes doubled, which changes no step's rows.

    Raises:
        MissingExtraError: a package of the engine is not installed.
        ModelError: the loss goes nowhere, or memory is too small for a single row.
    """
    remarks: list[str] = []
    began = time.monotonic()
    while True:
        try:
            trainer = _run(config, material, watcher, resume=resume)
            break
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and _OUT_OF_MEMORY.search(str(error)) is None:
                raise
            config = _smaller(config)
        # Out of the handler, whose traceback would keep the failed model's memory.
        remarks.append(
            f"Memory ran out; going on with {config.batch} rows a pass and {config.accumulation} passes a step."
        )
        watcher.say(remarks[-1])
        resume = True
    from smolcls.train.guard import expectations

    seconds = time.monotonic() - began
    history = [dict(item) for item in trainer.state.log_history]
    return Trained(
        best=f"{CHECKPOINTS}/{Path(trainer.state.best_model_checkpoint).name}",
        steps=trainer.state.global_step,
        seconds=round(seconds, 1),
        peak_memory_bytes=peak_memory(),
        history=history,
        expectations=expectations(config, history, seconds),
        remarks=remarks,
    )


def last_whole(checkpoints: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None; the others are removed."""
    from smolcls.export.lora import LoraAdapter

    found = sorted(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    while found:
        try:
            # The trainer writes its state last.
            read_json(found[-1] / _STATE)
            LoraAdapter(found[-1])
            return found[-1]
        except (OSError, ValueError, ModelError):
            shutil.rmtree(found.pop())
    return None


def peak_memory() -> int:
    """The most memory that this process has held, in bytes; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024


def _run(config: TrainConfig, material: Material, watcher: Watcher, *, resume: bool) -> Any:
    require("peft", extra="train", purpose="Training")
    require("accelerate", extra="train", purpose="Training")
    from transformers import PrinterCallback

    from smolcls.train.guard import Guard, metrics_of

    rows = config.batch * config.accumulation
    lengths = [len(example["input_ids"]) for example in material.train]
    order = arrange(lengths, epochs=config.epochs, rows_a_step=rows, seed=config.seed)
    with quiet():
        job = Job(
            config=config,
            base=material.base,
            encoder=material.encoder,
            train=[material.train[row] for row in order],
            validation=list(material.validation),
            arguments=_arguments(config, steps=-(-len(order) // rows)),
            metrics=metrics_of(material.encoder.answers),
            callbacks=[Guard(config, watcher)],
            say=watcher.say,
        )
        trainer = importlib.import_module(MODULES[config.engine]).make_trainer(job)
        trainer.remove_callback(PrinterCallback)
        checkpoint = last_whole(config.out / CHECKPOINTS) if resume else None
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer


def _arguments(config: TrainConfig, steps: int) -> dict[str, Any]:
    every = max(1, steps // config.evaluations)
    return {
        "output_dir": str(config.out / CHECKPOINTS),
        "per_device_train_batch_size": config.batch,
        "per_device_eval_batch_size": config.batch,
        "gradient_accumulation_steps": config.accumulation,
        # The rows come in the order of the whole run, all epochs of it.
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": warmup_steps(config, steps),
        "max_grad_norm": config.max_norm,
        "weight_decay": config.weight_decay,
        "seed": config.seed,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,
        # A proper score tells checkpoints apart that the accuracy of a few hundred rows does not.
        "metric_for_best_model": "loss",
        "greater_is_better": False,
        "logging_steps": max(1, min(10, steps // 30)),
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "tensorboard" if config.tensorboard else "none",
    }


def _smaller(config: TrainConfig) -> TrainConfig:
    if config.batch == 1 and (config.engine != "shared" or config.pass_tokens <= config.max_length):
        raise ModelError(
            "Memory is too small for a single row. Close other programs, lower --max-length, or take a smaller base; "
            "on a GPU also try: --preset low-memory"
        )
    rows = config.batch * config.accumulation
    # Half of it, or the next smaller number that still makes the same steps.
    batch = max(size for size in range(1, max(1, config.batch // 2) + 1) if rows % size == 0)
    return replace(config, batch=batch, accumulation=rows // batch, pass_tokens=max(64, config.pass_tokens // 2))
