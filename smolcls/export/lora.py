"""LoRA adapters in PEFT's format, and their addition to base weights.

Merging adds `scale · B A` to a weight, scale being alpha / r, or alpha / √r for rsLoRA (Hu et al. 2021;
Kalajdzievski 2023). It is done here in float32, tensor by tensor, on the unquantised base.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smolcls.errors import ModelError
from smolcls.export.safetensors import SafetensorsFile

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


class LoraAdapter:
    """An adapter folder: `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        ModelError: a file is missing or damaged, or the adapter is of a kind that a plain merge would get wrong.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            if config.get("peft_type") != "LORA":
                raise ValueError(f"peft_type is {config.get('peft_type')!r}, not 'LORA'")
            rank, alpha = int(config["r"]), float(config["lora_alpha"])
            if rank < 1:
                raise ValueError(f"r is {rank}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{folder} is not a LoRA adapter: {error}.") from error
        unsupported = [
            key
            for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication")
            if config.get(key)
        ]
        if unsupported or config.get("bias", "none") != "none":
            raise ModelError(
                f"{folder}: an adapter with {', '.join(unsupported) or 'biases'} cannot be merged; "
                "train one without, or merge it with PEFT and export the merged folder."
            )
        self.scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        self._file = SafetensorsFile(folder / WEIGHTS)
        self._modules = sorted({name.rpartition(".lora_")[0] for name in self._file.names})

    @property
    def modules(self) -> list[str]:
        """Names of the weights that the adapter changes, as Hugging Face names them, without `.weight`."""
        return [name.removeprefix(_PREFIX) for name in self._modules]

    def delta(self, module: str) -> npt.NDArray[np.float32] | None:
        """What to add to a module's weight, shape (out, in), or None where the adapter leaves it alone."""
        name = _PREFIX + module
        if name not in self._modules:
            return None
        down = self._file.read(f"{name}.lora_A.weight")
        up = self._file.read(f"{name}.lora_B.weight")
        return np.asarray(self.scale * (up @ down), dtype=np.float32)

    def add_to(self, module: str, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The merged weight.

        Raises:
            ModelError: the adapter was made for another shape of this module, or the sum is not finite.
        """
        delta = self.delta(module)
        if delta is None:
            return weight
        if delta.shape != weight.shape:
            raise ModelError(
                f"{self.folder} was trained for another base: {module} is {delta.shape} there and {weight.shape} here."
            )
        merged: npt.NDArray[np.float32] = weight + delta
        if not np.isfinite(merged).all():
            raise ModelError(f"{self.folder}: merging gives values that are not finite in {module}.")
        return merged


def describe(folder: Path) -> dict[str, Any]:
    """The adapter's configuration, as PEFT wrote it."""
    content: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return content
