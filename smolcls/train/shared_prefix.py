"""The engine `shared`: training that computes the prompt's prefix once a pass instead of once a row.

The frame's prefix is longer than most texts. Its keys and values are computed for one row, with
gradients, and stand in for all rows; the result is the same as with whole rows, at less than half the
cost. Logits are computed on the answer alone: SmolLM2's vocabulary is a fifth of its arithmetic.

What memory a pass takes depends on its tokens, and a batch of long rows took 19 GB on a CPU: a batch goes
through the model in parts of at most `pass_tokens`, whose gradients add up to the batch's.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers import DynamicCache, Trainer, TrainingArguments

from smolcls.train.base import load_model
from smolcls.train.encode import IGNORED, Example
from smolcls.train.job import Job, lora_model


def make_trainer(job: Job) -> Trainer:
    """The trainer of a job, with the model in float32 on the CPU, or bfloat16 on CUDA."""
    cuda = torch.cuda.is_available()
    model = lora_model(job, load_model(job.base, dtype="bfloat16" if cuda else "float32"))
    prefix = job.encoder.prefix
    return SharedPrefixTrainer(
        prefix=prefix,
        pass_tokens=job.config.pass_tokens,
        model=model,
        args=TrainingArguments(**job.arguments, use_cpu=not cuda, bf16=job.config.precision == "bfloat16"),
        data_collator=Collator(len(prefix), job.encoder.tokenizer.pad_token_id),
        train_dataset=job.train,
        eval_dataset=job.validation,
        compute_metrics=job.metrics,
        callbacks=job.callbacks,
    )


class Collator:
    """Pads examples on the left, so that every row's answer stands at the end.

    Gives `input_ids`, `labels`, `attention_mask` and `position_ids`, each (rows, tokens); positions go on
    after the prefix.
    """

    def __init__(self, prefix: int, pad: int | None) -> None:
        self._prefix, self._pad = prefix, 0 if pad is None else pad

    def __call__(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """The examples as a batch."""
        longest = max(len(example["input_ids"]) for example in examples)
        ids, labels, mask, positions = [], [], [], []
        for example in examples:
            length = len(example["input_ids"])
            gap = longest - length
            ids.append([self._pad] * gap + example["input_ids"])
            labels.append([IGNORED] * gap + example["labels"])
            mask.append([0] * gap + [1] * length)
            positions.append([0] * gap + list(range(self._prefix, self._prefix + length)))
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "attention_mask": torch.tensor(mask),
            "position_ids": torch.tensor(positions),
        }


class SharedPrefixTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with the loss computed after a shared prefix, in parts of bounded size."""

    def __init__(self, *, prefix: list[int], pass_tokens: int, **options: Any) -> None:
        super().__init__(**options)
        self._prefix, self._pass_tokens = torch.tensor([prefix]), pass_tokens
        # transformers up to 5.17 at least calls it past_key_values; to be dropped with support for them.
        named = inspect.signature(self.model.get_base_model().forward).parameters
        self._cache = "cache" if "cache" in named else "past_key_values"

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Add a batch's gradients, part by part; returns its share of the loss, a mean over the step's answers."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        count = num_items_in_batch if num_items_in_batch is not None else answer_tokens(inputs)
        total = torch.zeros((), device=inputs["labels"].device)
        for part in parts(inputs, self._pass_tokens):
            with self.compute_loss_context_manager():
                loss = self._forward(model, part)[0] / count
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Mean cross-entropy of the answers' tokens; the outputs are the likeliest next tokens, (rows, tokens)."""
        loss, logits = self._forward(model, inputs)
        mean = loss / answer_tokens(inputs)
        if not return_outputs:
            return mean
        likeliest = torch.full_like(inputs["labels"], IGNORED)
        likeliest[:, -1 - logits.shape[1] : -1] = logits.argmax(dim=-1)
        return mean, {"likeliest": likeliest}

    def _forward(self, model: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed cross-entropy of the answers' tokens, and the logits that predict the last columns."""
        labels = inputs["labels"]
        rows = labels.shape[0]
        prefix = self._prefix.to(labels.device)
        cache = getattr(model(input_ids=prefix, use_cache=True, logits_to_keep=1), self._cache)
        shared = DynamicCache(
            [(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1)) for layer in cache.layers]
        )
        seen = torch.ones((rows, prefix.shape[1]), dtype=inputs["attention_mask"].dtype, device=labels.device)
        answer = int((labels != IGNORED).sum(dim=1).max())
        logits = model(
            input_ids=inputs["input_ids"],
            attention_mask=torch.cat([seen, inputs["attention_mask"]], dim=1),
            position_ids=inputs["position_ids"],
            use_cache=True,
            logits_to_keep=answer + 1,
            **{self._cache: shared},
        ).logits[:, :-1]
        targets = labels[:, -answer:].flatten()
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum"
        )
        return loss, logits


def answer_tokens(inputs: Any) -> torch.Tensor:
    """How many tokens of a batch the loss is a mean over."""
    found: torch.Tensor = (inputs["labels"] != IGNORED).sum()
    return found


def parts(inputs: Any, pass_tokens: int) -> Iterator[dict[str, torch.Tensor]]:
    """A batch in parts of at most `pass_tokens` tokens, or one row; longest rows first, without needless padding."""
    lengths = inputs["attention_mask"].sum(dim=1)
    order = torch.argsort(lengths, descending=True, stable=True).tolist()
    while order:
        longest = int(lengths[order[0]])
        taken, order = order[: max(1, pass_tokens // longest)], order[max(1, pass_tokens // longest) :]
        yield {name: values[taken, -longest:] for name, values in inputs.items()}
