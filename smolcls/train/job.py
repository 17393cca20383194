"""What every engine is given: the settings, the rows, and what is to be watched. An engine makes a trainer of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolcls.errors import require
from smolcls.export.layers import replication
from smolcls.train.config import TrainConfig
from smolcls.train.encode import IGNORED, Encoder, Example


@dataclass(frozen=True, slots=True)
class Job:
    """A training run as its engine sees it.

    Attributes:
        config: settled settings.
        base: the GGUF file or folder of the base.
        encoder: what all rows share, in tokens.
        train: examples in the order of training, for the whole run.
        validation: examples that are evaluated.
        arguments: for `transformers.TrainingArguments`, without what depends on the device.
        metrics: computes the metrics of an evaluation from the likeliest tokens and the labels.
        callbacks: transformers' callbacks.
        say: tells a person something.
    """

    config: TrainConfig
    base: Path
    encoder: Encoder
    train: list[Example]
    validation: list[Example]
    arguments: dict[str, Any]
    metrics: Callable[[Any], dict[str, float]]
    callbacks: list[Any]
    say: Callable[[str], None]


def lora_model(job: Job, model: Any) -> Any:
    """The kept layers of the model, with a fresh LoRA adapter on all linear ones, initialised from the seed."""
    peft = require("peft", extra="train", purpose="Training")
    transformers = require("transformers", extra="train", purpose="Training")
    lora = peft.LoraConfig(
        r=job.config.rank,
        lora_alpha=job.config.alpha,
        lora_dropout=job.config.dropout,
        target_modules="all-linear",
        layer_replication=replication(job.config.keep_layers, model.config.num_hidden_layers),
        task_type="CAUSAL_LM",
    )
    transformers.set_seed(job.config.seed)
    return peft.get_peft_model(model, lora)


def whole(job: Job, example: Example) -> Example:
    """An example with the prefix before it, for engines that compute whole rows."""
    prefix = job.encoder.prefix
    return {
        "input_ids": prefix + example["input_ids"],
        "labels": [IGNORED] * len(prefix) + example["labels"],
    }
