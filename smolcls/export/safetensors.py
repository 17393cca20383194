"""Reading safetensors files one tensor at a time, bfloat16 included, without torch.

The package of that name reads bfloat16 for torch only, and loads whole tensors into memory of its
own; a memory map keeps the peak at one tensor, which is what lets a 1.7B model be exported on a laptop.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smolcls.errors import ModelError

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_MAX_HEADER = 100_000_000


def _are_sizes(shape: list[Any]) -> bool:
    """Whether each is a whole number above 0 that fits a file's size; JSON also has 2.0, true and Infinity."""
    return all(type(count) is int and 0 < count < 1 << 48 for count in shape)


class SafetensorsFile:
    """One safetensors file, memory-mapped.

    Raises:
        ModelError: the file is missing, damaged, or not a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if not 2 <= length <= min(_MAX_HEADER, size - 8):
                    raise ValueError("its header has an impossible length")
                header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            self._entries: dict[str, dict[str, Any]] = header
            self._start = 8 + length
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                if not 0 <= begin <= end <= size - self._start:
                    raise ValueError(f"the tensor {name} lies outside the file")
                if not isinstance(entry["dtype"], str) or not _are_sizes(entry["shape"]):
                    raise ValueError(f"the tensor {name} has no type or no values")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(
                f"{path} is not a whole safetensors file: {error}. Download or export it again."
            ) from error

    @property
    def names(self) -> list[str]:
        """The tensors' names."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return tuple(self._entries[name]["shape"])

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor as float32.

        Raises:
            ModelError: its type is not a floating-point one.
        """
        entry = self._entries[name]
        kind = _TYPES.get(entry["dtype"])
        if kind is None:
            raise ModelError(
                f"{self.path}: the tensor {name} has type {entry['dtype']}; expected one of {', '.join(_TYPES)}."
            )
        begin, end = entry["data_offsets"]
        shape = self.shape(name)
        if int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize != end - begin:
            raise ModelError(f"{self.path}: the tensor {name} has not the size of its shape {shape}.")
        raw = np.memmap(self.path, dtype=kind, mode="r", offset=self._start + begin, shape=shape)
        if entry["dtype"] == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32)
