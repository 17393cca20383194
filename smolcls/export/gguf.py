"""Writing GGUF files of the Llama architecture, tensor by tensor.

A source gives metadata and tensors; `write_f16` writes them with an adapter added on the way, holding
one tensor at a time in memory. Two sources exist: a GGUF file (dequantised), which is here, and a Hugging
Face folder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smolcls.errors import ModelError, require
from smolcls.export.folder import FolderSource
from smolcls.export.llama import ARCHITECTURE, Source, Tensor, hf_name, permute, rotary_heads, unpermute
from smolcls.export.lora import LoraAdapter
from smolcls.files import replacing
from smolcls.scan import scan

_F16_FILE_TYPE = 1
_LAYERS = "llama.block_count"


class GgufSource:
    """Weights and metadata of a GGUF file of the Llama architecture; quantised weights are dequantised.

    Raises:
        ModelError: the file is damaged or of another architecture.
    """

    def __init__(self, path: Path) -> None:
        header = scan(path)
        if header.architecture != ARCHITECTURE:
            raise ModelError(f"{path} has the architecture {header.architecture!r}; expected {ARCHITECTURE!r}.")
        if header.metadata.get("general.type", "model") != "model" or header.metadata.get("split.count", 1) > 1:
            raise ModelError(f"{path} is an adapter or a part of a model; expected a whole model in one file.")
        heads = header.metadata.get("llama.attention.head_count")
        if not isinstance(heads, int) or heads < 1:
            raise ModelError(f"{path} does not say how many attention heads its layers share; found {heads!r}.")
        self.heads = heads
        self.kv_heads = int(header.metadata.get("llama.attention.head_count_kv", heads))
        self.layers = header.metadata.get(_LAYERS, 0)
        if not isinstance(self.layers, int) or self.layers < 1:
            raise ModelError(f"{path} does not say how many layers it has.")
        self._gguf = require("gguf", extra="llamacpp", purpose="Building a model")
        self._path = path
        with _readable(path):
            self._reader = self._gguf.GGUFReader(path)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor, q and k rows back in Hugging Face's order."""
        for tensor in self._reader.tensors:
            shape = tuple(int(size) for size in reversed(tensor.shape))
            yield Tensor(tensor.name, shape, lambda tensor=tensor, shape=shape: self._read(tensor, shape))  # type: ignore[misc]

    def value(self, key: str) -> Any:
        """What the metadata says under a key, or None."""
        field = self._reader.fields.get(key)
        with _readable(self._path):
            return None if field is None else field.contents()

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0 of the metadata.

        Raises:
            ModelError: it is something else, or not there and has no default.
        """
        found = self.value(key)
        found = default if found is None else found
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 < found < 1 << 31:
            raise ModelError(f"{self._path}: {key} must be a number above 0; found {found!r}.")
        return float(found)

    def write_metadata(self, writer: Any, layers: int | None = None) -> None:
        """Copy everything but what describes the file itself."""
        # The writer sets the architecture and aligns by its own default; the file's types are no longer these.
        left_out = {
            "general.architecture",
            "general.alignment",
            "general.file_type",
            "general.quantization_version",
        }
        kinds = self._gguf.GGUFValueType
        for key, field in self._reader.fields.items():
            if key.startswith("GGUF.") or key in left_out:
                continue
            inner = field.types[-1] if field.types[0] == kinds.ARRAY else None
            with _readable(self._path):
                value = field.contents() if key != _LAYERS or layers is None else layers
            writer.add_key_value(key, value, field.types[0], sub_type=inner)

    def _read(self, tensor: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        with _readable(self._path):
            values = self._gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            weight = np.asarray(values, dtype=np.float32).reshape(shape)
        heads = rotary_heads(tensor.name, self)
        return weight if heads is None else unpermute(weight, heads)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What the reader of GGUF raises for a damaged file that the scan let through, as an error of smolcls."""
    try:
        yield
    except (ValueError, LookupError, TypeError, OverflowError, NotImplementedError) as error:
        raise ModelError(f"{path} is damaged: {error}. Expected a whole GGUF file; download it again.") from error


def open_source(path: Path) -> Source:
    """The source for a GGUF file or a Hugging Face folder."""
    return FolderSource(path) if path.is_dir() else GgufSource(path)


def write_f16(
    source: Source,
    path: Path,
    *,
    adapter: LoraAdapter | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a GGUF in F16 (norms in F32), the adapter merged in, whole or not at all.

    Of the layers those are written that the adapter was trained on.

    Args:
        progress: called with (tensors written, tensors in all) after each one.

    Raises:
        ModelError: the adapter does not fit the base, or changes nothing in it.
    """
    gguf = require("gguf", extra="llamacpp", purpose="Building a model")
    if adapter is not None:
        source = adapter.base_of(source)
    tensors = list(source.tensors())
    if adapter is not None:
        _check_adapter(adapter, tensors)
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
        try:
            source.write_metadata(writer)
            writer.add_file_type(_F16_FILE_TYPE)
            for tensor in tensors:
                kind = np.dtype(np.float32 if len(tensor.shape) == 1 else np.float16)
                size = int(np.prod(tensor.shape)) * kind.itemsize
                writer.add_tensor_info(tensor.name, tensor.shape, kind, size)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for done, tensor in enumerate(tensors, start=1):
                writer.write_tensor_data(_final(tensor, source, adapter))
                if progress:
                    progress(done, len(tensors))
        finally:
            writer.close()


def _final(tensor: Tensor, source: Source, adapter: LoraAdapter | None) -> npt.NDArray[Any]:
    weight = tensor.read()
    if len(tensor.shape) == 1:
        return weight
    if adapter is not None:
        weight = adapter.add_to(hf_name(tensor.name), weight)
    heads = rotary_heads(tensor.name, source)
    with np.errstate(over="ignore"):
        half = (weight if heads is None else permute(weight, heads)).astype(np.float16)
    if not np.isfinite(half).all():
        raise ModelError(f"The weight {tensor.name} has values that F16 cannot hold; the model cannot be exported.")
    return half


def _check_adapter(adapter: LoraAdapter, tensors: list[Tensor]) -> None:
    there = {hf_name(tensor.name) for tensor in tensors}
    foreign = [module for module in adapter.modules if module not in there]
    if foreign or not adapter.modules:
        lacking = foreign[0] if foreign else "module of it"
        raise ModelError(f"{adapter.folder} was trained for another base: this one has no {lacking}.")
