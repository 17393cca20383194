"""The engine `trl`: TRL's SFTTrainer on whole rows, with PEFT, for a GPU. It runs on a CPU too.

On CUDA the base is kept in 4 bit (NF4, double quantisation, computed in bfloat16) where bitsandbytes is
installed and the base is a folder, and the optimiser's state in 8 bit and paged. The CUDA side has not been
tried: it was written without a GPU.
"""

from __future__ import annotations

import importlib.util
import os
from functools import partial
from typing import Any

import torch

from smolcls.errors import require
from smolcls.train.base import load_model
from smolcls.train.encode import IGNORED, Example
from smolcls.train.job import Job, lora_model, whole


def make_trainer(job: Job, model: Any = None) -> Any:
    """The trainer of a job.

    Args:
        model: a model with its adapter; None loads the base and adds one.
    """
    trl = require("trl", extra="train", purpose="The engine trl")
    datasets = require("datasets", extra="train", purpose="The engine trl")
    cuda = torch.cuda.is_available()
    bf16 = cuda and torch.cuda.is_bf16_supported()
    arguments = {
        **job.arguments,
        "use_cpu": not cuda,
        "bf16": bf16,
        "fp16": cuda and not bf16,
        "gradient_checkpointing": job.config.checkpointing,
        "max_length": job.config.max_length,
        "packing": False,
        # The rows are token ids with labels already, made by the one renderer.
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    if cuda and _has_bitsandbytes():
        arguments["optim"] = "paged_adamw_8bit"
    trainer = trl.SFTTrainer(
        model=_model(job, cuda=cuda, bf16=bf16) if model is None else model,
        args=trl.SFTConfig(**arguments),
        data_collator=partial(collate, pad=job.encoder.tokenizer.pad_token_id),
        train_dataset=datasets.Dataset.from_list([whole(job, example) for example in job.train]),
        eval_dataset=datasets.Dataset.from_list([whole(job, example) for example in job.validation]),
        processing_class=job.encoder.tokenizer,
        compute_metrics=job.metrics,
        preprocess_logits_for_metrics=likeliest,
        callbacks=job.callbacks,
    )
    return trainer


def likeliest(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """The likeliest next tokens, (rows, tokens); the logits themselves would take gigabytes."""
    found: torch.Tensor = (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)
    return found


def collate(examples: list[Example], *, pad: int | None) -> dict[str, torch.Tensor]:
    """Examples as a batch, padded on the right."""
    longest = max(len(example["input_ids"]) for example in examples)

    def padded(name: str, value: int) -> torch.Tensor:
        return torch.tensor([example[name] + [value] * (longest - len(example[name])) for example in examples])

    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    return {
        "input_ids": padded("input_ids", 0 if pad is None else pad),
        "labels": padded("labels", IGNORED),
        "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
    }


def _model(job: Job, *, cuda: bool, bf16: bool) -> Any:
    if not cuda:
        return lora_model(job, load_model(job.base, dtype="float32"))
    compute = torch.bfloat16 if bf16 else torch.float16
    place = {"": int(os.environ.get("LOCAL_RANK", "0"))}  # several processes have a GPU each
    if not (job.config.four_bit and job.base.is_dir() and _has_bitsandbytes()):
        if job.config.four_bit:
            job.say(
                "The base is kept in 16 bit: 4 bit needs the package bitsandbytes, and a base that is a folder or a "
                "Hub id, not a GGUF file."
            )
        return lora_model(job, load_model(job.base, dtype=compute, device_map=place))
    transformers = require("transformers", extra="train", purpose="Training")
    peft = require("peft", extra="train", purpose="Training")
    four_bit = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    model = load_model(job.base, dtype=compute, device_map=place, quantization_config=four_bit)
    prepared = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=job.config.checkpointing)
    return lora_model(job, prepared)


def _has_bitsandbytes() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None
