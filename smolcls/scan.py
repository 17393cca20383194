"""A guard in front of llama.cpp: is this file a whole GGUF?

A damaged file can abort the process inside the native loader, where no exception can be caught. The
header is walked here first, with every length checked against the file's size, and with what the loader
would assert. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from smolcls.errors import ModelError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_TENSORS, _MAX_KEYS, _MAX_STRING = 100_000, 10_000, 1 << 24
_MAX_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS
_TOKENS = "tokenizer.ggml.tokens"
# ggml type → (values a block, bytes a block); ggml/src/ggml-common.h. A type that is not here is left unchecked.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 30: (1, 2),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The single-valued metadata of a GGUF file (arrays are left out) and its tensor count."""

    metadata: dict[str, Any]
    tensors: int

    @property
    def architecture(self) -> str:
        """The model family, such as `llama`."""
        return str(self.metadata.get("general.architecture", "unknown"))


def scan(path: Path) -> GgufHeader:
    """Check that a file is a whole GGUF, and return its header.

    Raises:
        ModelError: it is missing, empty, of another format or version, damaged, or cut off.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            return _scan(_Walker(stream, size))
    except FileNotFoundError as error:
        raise ModelError(f"There is no model file {path}. Expected a GGUF file.") from error
    except (OSError, ValueError, struct.error) as error:
        raise ModelError(f"{path} is not a whole GGUF file: {error}. Build or download it again.") from error


class _Walker:
    """Reads a header front to back; a `ValueError` says what is wrong with it."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size = stream, size

    def take(self, count: int) -> bytes:
        data = self.stream.read(count)
        if len(data) != count:
            raise ValueError("it ends in the middle of its header")
        return data

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def skip(self, count: int) -> None:
        if self.stream.tell() + count > self.size:
            raise ValueError("a length in its header goes beyond the file")
        self.stream.seek(count, 1)

    def string(self) -> str:
        length = self.number("<Q")
        if length > min(_MAX_STRING, self.size):
            raise ValueError("a text in its header is longer than the file")
        return self.take(length).decode("utf-8", "replace")

    def value(self, key: str) -> Any:
        """The value of a key, or None for an array."""
        kind = self.number("<I")
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ValueError(f"its header holds a value of the unknown type {kind}")
        kind, count = self.number("<I"), self.number("<Q")
        if kind in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            self.strings(count, differing=key == _TOKENS)
        else:
            raise ValueError(f"its header holds a list of the unknown type {kind}")
        return None

    def strings(self, count: int, *, differing: bool) -> None:
        # A vocabulary has a hundred thousand of them, so this loop is most of a scan: it reads straight ahead.
        read, limit = self.stream.read, min(_MAX_STRING, self.size)
        if count * 8 > self.size:
            raise ValueError("a list in its header is longer than the file")
        seen: set[bytes] = set()
        for _ in range(count):
            length = int.from_bytes(read(8), "little")
            text = read(length) if length <= limit else b""
            if len(text) != length:
                raise ValueError("a text in its header is longer than the file")
            if differing and text:
                token = text.partition(b"\0")[0]  # llama.cpp reads no further
                if token in seen:
                    raise ValueError(f"its vocabulary holds {token!r} twice")
                seen.add(token)


def _scan(walker: _Walker) -> GgufHeader:
    magic = walker.take(4)
    if magic != b"GGUF":
        raise ValueError(f"it starts with {magic!r} instead of b'GGUF'")
    version, tensors, keys = walker.number("<I"), walker.number("<Q"), walker.number("<Q")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}; expected 2 or 3")
    if not 0 < tensors <= _MAX_TENSORS or keys > _MAX_KEYS:
        raise ValueError(f"it claims {tensors} tensors and {keys} keys")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = walker.string()
        value = walker.value(key)
        if value is not None:
            metadata[key] = value
    header = GgufHeader(metadata, tensors)
    alignment = _alignment(header)
    end = max(_tensor_end(walker) for _ in range(tensors))
    start = math.ceil(walker.stream.tell() / alignment) * alignment
    if start + end > walker.size:
        raise ValueError(f"it has {walker.size} bytes; its tensors need {start + end}")
    return header


def _alignment(header: GgufHeader) -> int:
    """The alignment of the tensors, the values that llama.cpp asserts checked on the way."""
    layers = header.metadata.get(f"{header.architecture}.block_count", 1)
    if not isinstance(layers, int) or not 0 < layers <= _MAX_LAYERS:
        raise ValueError(f"it claims {layers!r} layers")
    for key, value in header.metadata.items():
        if key.endswith("epsilon") and not (isinstance(value, float) and 0.0 <= value < 1.0):
            raise ValueError(f"its {key} is {value!r}")
    alignment = header.metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise ValueError(f"its alignment is {alignment!r}")
    return alignment


def _tensor_end(walker: _Walker) -> int:
    name = walker.string()
    dimensions = walker.number("<I")
    if not 1 <= dimensions <= 4:
        raise ValueError(f"the tensor {name!r} claims {dimensions} dimensions")
    shape = [int(walker.number("<Q")) for _ in range(dimensions)]
    kind, offset = walker.number("<I"), walker.number("<Q")
    values, width = _BLOCKS.get(kind, (1, 0))
    # Norms and biases, which have one dimension, are added and multiplied as they are: never in blocks.
    if not all(shape) or shape[0] % values != 0 or (dimensions == 1 and values > 1):
        raise ValueError(f"the tensor {name!r} of type {kind} claims the shape {shape}")
    return int(offset + math.prod(shape) // values * width)
