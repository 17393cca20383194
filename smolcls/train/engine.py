"""Fine-tuning a LoRA adapter with PEFT on transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smolcls.errors import require
from smolcls.train.config import TrainConfig


def fit(
    config: TrainConfig,
    model: Any,
    tokenizer: Any,
    *,
    prefix: list[int],
    train: list[dict[str, list[int]]],
    validation: list[dict[str, list[int]]],
    resume: bool = False,
) -> Path:
    """Train a LoRA adapter; returns the folder of the best checkpoint by validation loss.

    Args:
        prefix: tokens of the frame's prefix, which all examples share.
        train, validation: examples as `encode` makes them.
        resume: go on from the run's last checkpoint.
    """
    transformers = require("transformers", extra="train", purpose="Training")
    peft = require("peft", extra="train", purpose="Training")
    datasets = require("datasets", extra="train", purpose="Training")
    from smolcls.train.shared_prefix import Collator, SharedPrefixTrainer

    lora = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    transformers.set_seed(config.seed)
    trainer = SharedPrefixTrainer(
        prefix=prefix,
        model=peft.get_peft_model(model, lora),
        args=transformers.TrainingArguments(**_arguments(config, len(train))),
        data_collator=Collator(len(prefix), tokenizer.pad_token_id),
        train_dataset=datasets.Dataset.from_list(train),
        eval_dataset=datasets.Dataset.from_list(validation),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=resume)
    return Path(trainer.state.best_model_checkpoint)


def _arguments(config: TrainConfig, rows: int) -> dict[str, Any]:
    steps = max(1, round(rows * config.epochs / (config.batch * config.accumulation)))
    every = max(1, steps // config.evaluations)
    return {
        "output_dir": str(config.out / "checkpoints"),
        "per_device_train_batch_size": config.batch,
        "per_device_eval_batch_size": config.batch,
        "gradient_accumulation_steps": config.accumulation,
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": config.warmup,
        "max_grad_norm": config.max_norm,
        "weight_decay": config.weight_decay,
        "seed": config.seed,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "prediction_loss_only": True,
        "logging_steps": 10,
        # Rows of like length share a batch: on a CPU padding is the cost.
        "train_sampling_strategy": "group_by_length",
        "use_cpu": True,
        "report_to": "none",
    }
