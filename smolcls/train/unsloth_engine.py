"""The engine `unsloth`: Unsloth's fused kernels under the trainer of `whole_rows`.

Unsloth pins older releases of TRL (up to 1.15) and transformers, so it lives in an environment of its own;
nothing here needs newer ones. Tried on Unsloth's CPU fallback up to the loaded model, without a GPU; the
rest is from its documentation (https://docs.unsloth.ai). The export is this project's own for every engine.
"""

from __future__ import annotations

from typing import Any

from smolcls.errors import ConfigError, require
from smolcls.export.layers import replication
from smolcls.train import whole_rows
from smolcls.train.job import Job

_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_trainer(job: Job) -> Any:
    """The trainer of a job.

    Raises:
        MissingExtraError: Unsloth is not installed.
        ConfigError: the base is a GGUF file, which Unsloth does not load.
    """
    library = require("unsloth", extra="unsloth", purpose="The engine unsloth")
    if not job.base.is_dir():
        raise ConfigError(
            f"The engine unsloth loads a folder or a Hub id; found the GGUF file {job.base}. "
            "Use --engine trl, or --base HuggingFaceTB/SmolLM2-135M-Instruct."
        )
    config = job.config
    model, _ = library.FastLanguageModel.from_pretrained(
        model_name=str(job.base),
        max_seq_length=config.max_length,
        dtype=None,
        load_in_4bit=config.four_bit,
    )
    adapted = library.FastLanguageModel.get_peft_model(
        model,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=_LINEAR,
        layer_replication=replication(config.keep_layers, model.config.num_hidden_layers),  # handed on to PEFT
        use_gradient_checkpointing="unsloth" if config.checkpointing else False,
        random_state=config.seed,
    )
    return whole_rows.make_trainer(job, adapted)
