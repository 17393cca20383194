"""The folder of a training run: where everything in it lies, and the small files that say what it is."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolcls import build
from smolcls.backends.linear import FILE as LINEAR_MODEL
from smolcls.errors import ConfigError
from smolcls.files import read_json, write_text
from smolcls.task import DEFAULT_TASK, Task
from smolcls.train.config import TrainConfig

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder.

    Attributes:
        folder: holds, when the run has ended, `config.json`, `task.toml`, `rows/`, `checkpoints/`, `training.json`,
            `adapter/`, `merged/`, `model-f16.gguf`, `model.gguf`, `onnx/`, `Modelfile`, `scores.jsonl`,
            `calibration.json`, `metrics.json`, `README.md` and `run.json`. A linear model's has `config.json`,
            `task.toml`, `rows/`, `model.safetensors` and `metrics.json`.
    """

    folder: Path

    @classmethod
    def start(cls, config: TrainConfig, task: Task) -> Run:
        """Make the folder, and write down the configuration and the task."""
        run = cls(config.out)
        run.folder.mkdir(parents=True, exist_ok=True)
        write_text(run.folder / "task.toml", task_toml(task))
        write_text(run.folder / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
        return run

    @property
    def checkpoints(self) -> Path:
        """Folder of the trainer's checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def training(self) -> Path:
        """What training left: the best checkpoint, the history, the expectations. Written when it has ended."""
        return self.folder / "training.json"

    @property
    def adapter(self) -> Path:
        """The adapter's folder, in PEFT's format, F16."""
        return self.folder / "adapter"

    @property
    def merged(self) -> Path:
        """The merged model as a Hugging Face folder, F16."""
        return self.folder / "merged"

    @property
    def f16(self) -> Path:
        """The merged model as GGUF in F16."""
        return self.folder / "model-f16.gguf"

    @property
    def model(self) -> Path:
        """The quantised model; the backend `llamacpp` finds the calibration beside it. Or the linear model."""
        linear = self.folder / LINEAR_MODEL
        return linear if linear.is_file() else self.folder / build.MODEL

    @property
    def onnx(self) -> Path:
        """The model for ONNX Runtime; its calibration is beside it."""
        return self.folder / "onnx" / build.FORMATS[build.ONNX]

    @property
    def modelfile(self) -> Path:
        """The Modelfile."""
        return self.folder / build.MODELFILE

    @property
    def scores(self) -> Path:
        """What the quantised model said about each held-out row."""
        return self.folder / "scores.jsonl"

    @property
    def calibration(self) -> Path:
        """The fitted temperature."""
        return self.folder / build.CALIBRATION

    @property
    def metrics(self) -> Path:
        """Metrics on the held-out rows."""
        return self.folder / "metrics.json"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.folder / "README.md"

    @property
    def record(self) -> Path:
        """The record of the whole run."""
        return self.folder / "run.json"

    def rows(self, split: str) -> Path:
        """The rows of a split: `train`, `validation` or `test`."""
        return self.folder / "rows" / f"{split}.jsonl"

    def config(self) -> TrainConfig:
        """The run's configuration.

        Raises:
            ConfigError: the folder is not a run's.
        """
        return TrainConfig.from_dict(self.read("config.json"))

    def task(self) -> Task:
        """The run's task; a shipped one, with its rules, where it is the same."""
        mine = Task.load(self.folder / "task.toml")
        shipped = Task.load(DEFAULT_TASK)
        return shipped if mine == shipped else mine

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder.

        Raises:
            ConfigError: it is missing or damaged.
        """
        try:
            return read_json(self.folder / name)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.folder} is not the folder of a training run that got so far: {name} cannot be read ({error}). "
                "Go on with it by: smolcls train --resume --out " + shlex.quote(str(self.folder))
            ) from error

    def commands(self) -> list[str]:
        """The command lines that use the result."""
        task, folder = self.task(), shlex.quote(str(self.folder))
        named = "" if task == Task.load(DEFAULT_TASK) else f" --task {folder}/task.toml"
        if self.model.name == LINEAR_MODEL:
            return [f'smolcls classify --backend linear:{folder}{named} "a text"']
        fast = f'smolcls classify --backend onnx:{folder}/onnx/{self.onnx.name}{named} "a text"'
        return [
            *([fast] if self.onnx.is_file() else []),
            f'smolcls classify --backend llamacpp:{folder}/{build.MODEL}{named} "a text"',
            f"ollama create {task.name} -f {folder}/{build.MODELFILE}",
            f'smolcls classify --backend ollama:{task.name}{named} "a text"',
            f"smolcls export {folder}",
        ]


def task_toml(task: Task) -> str:
    """A task as the TOML file that `Task.load` reads; rules are left out, for their path is another's."""
    lines = [
        f"name = {_quoted(task.name)}",
        f"instruction = {_quoted(task.instruction)}",
        f"describe_labels = {'true' if task.describe_labels else 'false'}",
        f"max_text_bytes = {task.max_text_bytes}",
        "",
        "[labels]",
        *(f"{_quoted(label.name)} = {_quoted(label.description)}" for label in task.labels),
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are a part of TOML's, and a task holds no other control characters."""
    return json.dumps(text, ensure_ascii=False)
