"""LoRA adapters in PEFT's format, and their addition to base weights.

Merging adds `scale · B A` to a weight, scale being alpha / r, or alpha / √r for rsLoRA (Hu et al. 2021;
Kalajdzievski 2023). It is done here in float32, tensor by tensor, on the unquantised base.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smolcls.errors import ModelError
from smolcls.export.layers import is_rising, name_ranges, shorten
from smolcls.export.llama import Source
from smolcls.export.safetensors import SafetensorsFile
from smolcls.files import read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_MAX_RANK = 1 << 16
_PREFIX = "base_model.model."
_PARTS = (".lora_A.weight", ".lora_B.weight")

# What a plain merge would get wrong: other arithmetic, other shapes, weights beside the two matrices.
_UNSUPPORTED = (
    "use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save",
    "trainable_token_indices", "target_parameters", "alora_invocation_tokens",
)  # fmt: skip
# Initialisations that change the base; the adapter is then the difference to a base that nobody else has.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


class LoraAdapter:
    """An adapter folder: `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        ModelError: a file is missing or damaged, or the adapter is of a kind that a plain merge would get wrong.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            config = read_json(folder / CONFIG)
            if config.get("peft_type") != "LORA":
                raise ValueError(f"peft_type is {config.get('peft_type')!r}, not 'LORA'")
            rank, alpha = int(config["r"]), float(config["lora_alpha"])
            if not 1 <= rank <= _MAX_RANK:
                raise ValueError(f"r is {rank}, expected 1 to {_MAX_RANK}")
            self._layers = [(int(first), int(end)) for first, end in config.get("layer_replication") or ()]
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise ModelError(f"{folder} is not a LoRA adapter: {error}. Expected a folder saved by PEFT.") from error
        _check_kind(folder, config)
        if not is_rising(self._layers):
            raise ModelError(
                f"{folder}: an adapter on repeated layers ({self.keep_layers}) cannot be merged here; train one on "
                "layers that rise."
            )
        self.scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        self._file = SafetensorsFile(folder / WEIGHTS)
        self._modules = self._check_weights(rank)

    @property
    def modules(self) -> list[str]:
        """Names of the weights that the adapter changes, as Hugging Face names them, without `.weight`."""
        return sorted(self._modules)

    @property
    def keep_layers(self) -> str | None:
        """The layers of the base that it was trained on, such as `0-17,28-29`, or None for all of them."""
        return name_ranges(self._layers) if self._layers else None

    def base_of(self, source: Source) -> Source:
        """A base as the adapter knows it: without the layers that it was trained without.

        Raises:
            ModelError: the base has another number of layers than the adapter's.
        """
        return shorten(source, self._layers, self.folder) if self._layers else source

    def delta(self, module: str) -> npt.NDArray[np.float32] | None:
        """What to add to a module's weight, shape (out, in), or None where the adapter leaves it alone."""
        if module not in self._modules:
            return None
        down, up = (self._file.read(_PREFIX + module + part) for part in _PARTS)
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

    def _check_weights(self, rank: int) -> set[str]:
        """The modules that have both matrices of this rank; anything else in the file is refused."""
        names = set(self._file.names)
        modules = {name.removeprefix(_PREFIX).removesuffix(part) for name in names for part in _PARTS}
        modules = {module for module in modules if {_PREFIX + module + part for part in _PARTS} <= names}
        foreign = sorted(names - {_PREFIX + module + part for module in modules for part in _PARTS})
        if foreign:
            raise ModelError(f"{self.folder}: the adapter's tensor {foreign[0]} cannot be merged into a linear layer.")
        for module in modules:
            down, up = (self._file.shape(_PREFIX + module + part) for part in _PARTS)
            if len(down) != 2 or len(up) != 2 or down[0] != rank or up[1] != rank:
                raise ModelError(
                    f"{self.folder}: {module} has matrices of the shapes {down} and {up}; expected rank {rank}, as "
                    f"{CONFIG} says."
                )
        return modules


def _check_kind(folder: Path, config: dict[str, Any]) -> None:
    unsupported = [key for key in _UNSUPPORTED if config.get(key)]
    if config.get("bias", "none") != "none":
        unsupported.append("bias")
    if str(config.get("init_lora_weights")).lower().startswith(_CHANGES_BASE):
        unsupported.append("init_lora_weights")
    if unsupported:
        found = ", ".join(f"{key}={config[key]!r}" for key in unsupported)
        raise ModelError(
            f"{folder}: an adapter with {found} cannot be merged here; train one without, or merge it with PEFT and "
            "export the merged folder."
        )
