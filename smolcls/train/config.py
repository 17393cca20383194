"""Every setting of a training run, one flat table, and the defaults that suit an engine or a preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from smolcls.build import default_quantisation
from smolcls.errors import ConfigError
from smolcls.export.layers import read_ranges

#: How an engine computes; the weights that are trained stay in 32 bit.
PRECISIONS = ("auto", "float32", "bfloat16")
ENGINES = ("auto", "shared", "trl", "unsloth", "linear")
#: The only engine that fine-tunes nothing: it has settings of its own, and needs rows alone.
LINEAR = "linear"
ZERO_2 = "zero2.yaml"
#: Stands for "the engine's default"; `settle` puts the number in its place.
AUTO: Any = None

# For a GPU: 32 rows a step, in small passes.
_GPU: Mapping[str, Any] = {
    "dropout": 0.1,
    "learning_rate": 2e-4,
    "epochs": 3.0,
    "batch": 4,
    "accumulation": 8,
    "warmup": 100,
    "max_norm": 1.0,
    # Peak memory with 135M in float32: 3.4 GB at 640, 5.3 GB at 1280. glibc's allocator keeps much of it, 13 GB in 30
    # steps on one machine. MALLOC_ARENA_MAX=2, MALLOC_MMAP_THRESHOLD_=131072 and MALLOC_TRIM_THRESHOLD_=131072, set
    # before Python starts, bound it, at up to twice the time; tcmalloc by LD_PRELOAD bounds it (4.4 GB) at no cost.
    "pass_tokens": 640,
    "checkpointing": False,
    "patience": 3,
}
# On a CPU every pass over the rows is minutes: one and a half at a higher rate do for three at a low one.
_CPU: Mapping[str, Any] = {
    **_GPU,
    "dropout": 0.0,
    "learning_rate": 6e-4,
    "epochs": 1.5,
    "batch": 32,
    "accumulation": 1,
    "warmup": 50,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"shared": _CPU, "trl": _GPU, "unsloth": _GPU, LINEAR: {}}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "stable": {"learning_rate": 1e-4, "warmup": 200, "max_norm": 0.5},
    "regularised": {"dropout": 0.2, "epochs": 2.0, "patience": 2},
    "low-memory": {"batch": 2, "accumulation": 16, "checkpointing": True, "pass_tokens": 512},
}


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Settings of one fine-tuning run. What is left at `AUTO` gets the preset's or the engine's value.

    Attributes:
        data: a JSONL file of rows, or `shipped` for the package's own.
        validation, test: files of held-out rows; without them parts of `data` are held out, by family.
        base: `bundled`, a GGUF file, a Hugging Face folder, or a Hub id.
        keep_layers: how many of the base's first layers are kept, or which layers, such as `0-17,28-29`; None
            keeps all. Fewer layers answer sooner, and know less.
        out: the run's folder.
        engine: `shared` (CPU), `trl`, `unsloth`, or `auto` for the one that suits this machine; `linear` trains
            n-grams with logistic regression instead, and takes the data, the task, `out` and `seed` alone.
        preset: `stable`, `regularised`, `low-memory`, or None.
        rank, alpha, dropout: LoRA's (Hu et al. 2021), on all linear layers.
        learning_rate: the peak of a cosine schedule.
        epochs: passes over the training rows.
        batch, accumulation: rows a forward pass, and passes an optimiser step.
        warmup: steps in which the learning rate rises, for runs of 1,000 steps; a shorter run takes the same share.
        max_norm: gradients are clipped to this norm.
        weight_decay: AdamW's.
        max_length: rows longer than this many tokens are left out.
        pass_tokens: tokens that go through the model at once, for the engine `shared`; bounds its memory.
        precision: `float32`; `bfloat16`, which halves the time where the machine has instructions for it; or `auto`,
            bfloat16 there and float32 elsewhere. For the engine `shared`; the others choose by themselves.
        four_bit: on CUDA, keep the base in 4 bit (NF4, double quantisation; Dettmers et al. 2023).
        checkpointing: compute activations again instead of keeping them; slower, and takes less memory.
        evaluations: how often the validation rows are scored and a checkpoint is written.
        patience: evaluations without a better accuracy after which training stops; 0 never stops.
        hours: a run that will take longer than this is warned of.
        seed: of the initialisation, the order of rows, dropout and the split.
        tensorboard: write TensorBoard's files into the run's folder.
        quantisation: of the finished model file; by default Q8_0 for the bundled base, Q4_K_M for others.
    """

    data: str | Path = "shipped"
    validation: Path | None = None
    test: Path | None = None
    base: str | Path = "bundled"
    keep_layers: int | str | None = None
    out: Path = Path("runs/run")
    engine: str = "auto"
    preset: str | None = None
    rank: int = 16
    alpha: int = 32
    dropout: float = AUTO
    learning_rate: float = AUTO
    epochs: float = AUTO
    batch: int = AUTO
    accumulation: int = AUTO
    warmup: int = AUTO
    max_norm: float = AUTO
    weight_decay: float = 0.01
    max_length: int = 512
    pass_tokens: int = AUTO
    precision: str = "auto"
    four_bit: bool = True
    checkpointing: bool = AUTO
    evaluations: int = 6
    patience: int = AUTO
    hours: float = 4.0
    seed: int = 7
    tensorboard: bool = False
    quantisation: str = AUTO

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(f"engine must be one of {', '.join(ENGINES)}; found {self.engine!r}.")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}; found {self.precision!r}.")
        if self.preset is not None and self.preset not in PRESETS:
            raise ConfigError(f"preset must be one of {', '.join(PRESETS)}; found {self.preset!r}.")
        if self.keep_layers is not None:
            read_ranges(self.keep_layers)
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is AUTO:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ConfigError(f"{name} must be a number from {low:g} to {high:g}; found {value!r}.")
            if name in _WHOLE and int(value) != value:
                raise ConfigError(f"{name} must be a whole number; found {value!r}.")
        if self.engine == LINEAR:
            default = {item.name: item.default for item in fields(self)}
            foreign = [name for name in default if name not in _OF_LINEAR and getattr(self, name) != default[name]]
            if foreign:
                raise ConfigError(f"The engine {LINEAR} has no setting {foreign[0]}; leave it out.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values of all settings."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in found.items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TrainConfig:
        """What `to_dict` gave.

        Raises:
            ConfigError: a setting that is not known, or a value that is not allowed.
        """
        unknown = sorted(set(content) - {item.name for item in fields(cls)})
        if unknown:
            raise ConfigError(f"A training configuration has the unknown setting {unknown[0]!r}.")
        paths = {name: Path(content[name]) for name in ("validation", "test", "out") if content.get(name) is not None}
        return cls(**{**content, **paths})


_RANGES: Mapping[str, tuple[float, float]] = {
    "rank": (1, 1024),
    "alpha": (1, 4096),
    "dropout": (0, 0.9),
    "learning_rate": (1e-8, 1),
    "epochs": (0.01, 1000),
    "batch": (1, 4096),
    "accumulation": (1, 4096),
    "warmup": (0, 100_000),
    "max_norm": (0.01, 1000),
    "weight_decay": (0, 1),
    "max_length": (32, 8192),
    "pass_tokens": (64, 1_000_000),
    "evaluations": (1, 1000),
    "patience": (0, 1000),
    "hours": (0.01, 10_000),
    "seed": (0, 2**31 - 1),
}
_OF_LINEAR = {"data", "validation", "test", "out", "engine", "seed"}
_WHOLE = {
    "rank", "alpha", "batch", "accumulation", "warmup", "max_length", "pass_tokens", "evaluations", "patience", "seed",
}  # fmt: skip


def settle(config: TrainConfig, engine: str) -> TrainConfig:
    """The configuration with the engine named and no setting at `AUTO`: a preset goes before an engine's default."""
    own = {} if engine == LINEAR else {"quantisation": default_quantisation(config.base)}
    chosen = {**own, **DEFAULTS[engine], **(PRESETS[config.preset] if config.preset is not None else {})}
    open_ones = {name: value for name, value in chosen.items() if getattr(config, name) is AUTO}
    return replace(config, engine=engine, **open_ones)


def warmup_steps(config: TrainConfig, steps: int) -> int:
    """Steps of a run in which the learning rate rises: `warmup` of every 1,000, and no more than `warmup`."""
    return min(config.warmup, round(steps * config.warmup / 1000))


def zero_2(config: TrainConfig) -> str:
    """A configuration for `accelerate launch`: DeepSpeed's ZeRO stage 2, the optimiser's state in main memory.

    Used by: `accelerate launch --config_file runs/x/zero2.yaml "$(command -v smolcls)" train --resume --out runs/x`.
    It has not been tried: it was written without a GPU (https://huggingface.co/docs/accelerate/usage_guides/deepspeed).
    """
    return "\n".join(
        [
            "compute_environment: LOCAL_MACHINE",
            "distributed_type: DEEPSPEED",
            "mixed_precision: bf16",
            "num_machines: 1",
            "num_processes: 1",
            "deepspeed_config:",
            "  zero_stage: 2",
            "  offload_optimizer_device: cpu",
            f"  gradient_accumulation_steps: {config.accumulation}",
            f"  gradient_clipping: {config.max_norm}",
            "",
        ]
    )
