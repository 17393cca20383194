"""The model card of a run: a README whose numbers are the run's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smolcls.export.layers import name_ranges, read_ranges
from smolcls.export.modelfile import licence_of
from smolcls.task import Task
from smolcls.train.run import Run

BUNDLED_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def render(run: Run) -> str:
    """The text of the card.

    Raises:
        ConfigError: the run has not been evaluated.
    """
    task, config = run.task(), run.config()
    base = BUNDLED_ID if config.base == "bundled" else str(config.base)
    metrics = run.read(run.metrics.name)
    eight_bit = f", `onnx/{run.onnx.name}` the same in eight bit for ONNX Runtime" if run.onnx.is_file() else ""
    parts = [
        _front_matter(base),
        f"# {task.name}: {len(task.names)} labels, from {base}",
        f"Puts a short text into one of: {', '.join(task.names)}. Fine-tuned with LoRA by smolcls; "
        f"`{run.model.name}` is {config.quantisation}{eight_bit}.",
        "## Labels\n\n" + "\n".join(f"- **{label.name}**: {label.description or label.name}" for label in task.labels),
        "## Measured\n\n" + _results(metrics, task),
        "## Use\n\n```sh\n" + "\n".join(run.commands()) + "\n```",
        "## Training\n\n" + _training(run),
        "## Limits\n\n" + _limits(metrics, task),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(base: str) -> str:
    return "\n".join(
        [
            "---",
            *([] if licence_of(base) is None else ["license: apache-2.0"]),
            f"base_model: {base}",
            "pipeline_tag: text-classification",
            "tags: [gguf, lora, text-classification, smolcls]",
            "---",
        ]
    )


def _results(metrics: Mapping[str, Any], task: Task) -> str:
    """Tables of the held-out rows, through the quantised file on the backend `llamacpp`."""
    splits = [(name, metrics[name]) for name in ("validation", "test")]
    head = ["rows", "accuracy", *(f"recall of {name}" for name in task.names), "ECE", "NLL"]
    lines = ["| | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for name, found in splits:
        recalls = [_recall(found["by_label"][label]) for label in task.names]
        cells = [str(found["rows"]), f"{found['accuracy']:.1%}", *recalls, f"{found['ece']:.3f}", f"{found['nll']:.3f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    temperature = metrics["test"]["temperature"]
    lines += [
        "",
        "Measured through the quantised file with the backend `llamacpp`, one text at a time. "
        + (
            f"The temperature is {temperature:.3f}, fitted on the validation rows."
            if temperature != 1.0
            else "No temperature was fitted."
        ),
        "",
        "Confusion on the test rows (a line for each true label):",
        "",
        "| | " + " | ".join(task.names) + " |",
        "|---" * (len(task.names) + 1) + "|",
    ]
    for name, counts in zip(task.names, metrics["test"]["confusion"], strict=True):
        lines.append(f"| **{name}** | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def _training(run: Run) -> str:
    config, training = run.config(), run.read(run.training.name)
    lines = [
        f"- LoRA: rank {config.rank}, alpha {config.alpha}, dropout {config.dropout}, on all linear layers",
        f"- learning rate {config.learning_rate:g} (cosine), {config.epochs:g} epochs of "
        f"{config.batch * config.accumulation} rows a step, seed {config.seed}, engine {config.engine}"
        f"{'' if config.precision == 'auto' else f' in {config.precision}'}",
        "- loss on the label alone; the prompt is the one that every backend renders",
    ]
    if config.keep_layers is not None:
        lines.append(f"- layers of the base that are kept: {name_ranges(read_ranges(config.keep_layers))}")
    if training.get("seconds") is not None:
        lines.append(f"- {training['seconds'] / 60:.0f} minutes of training")
    for item in training.get("expectations", []):
        lines.append(
            f"- expected {item['what']} {item['expected']}: {item['found']} ({'met' if item['met'] else 'not met'})"
        )
    return "\n".join(lines)


def _limits(metrics: Mapping[str, Any], task: Task) -> str:
    by_label = {name: found for name, found in metrics["test"]["by_label"].items() if found["rows"]}
    weakest = min(by_label, key=lambda name: by_label[name]["recall"])
    lines = [
        f"- Texts are shortened to {task.max_text_bytes} bytes, head and tail kept.",
        "- The numbers above hold for texts like the held-out rows; measure on your own before you rely on them.",
        f"- Weakest label on the test rows: {weakest}, {_recall(by_label[weakest])} recall.",
    ]
    return "\n".join(lines)


def _recall(found: Mapping[str, float]) -> str:
    return f"{found['recall']:.1%}" if found["rows"] else "no rows"
