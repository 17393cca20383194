"""The file of a linear model: the layout of safetensors, read and written without that package, or any other.

A length, a JSON header, bare little-endian numbers (https://github.com/huggingface/safetensors#format); nothing in
it is ever executed. The labels, the calibration and the number of training rows stand in the header's metadata,
the n-grams in a tensor of UTF-8, one a line.
"""

from __future__ import annotations

import json
import math
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smolcls.backends._linear_model import BLOCKS, LinearModel
from smolcls.calibration import Calibration
from smolcls.errors import ConfigError, ModelError
from smolcls.files import replacing

FORMAT = "smolcls-linear-1"

_CODES = {"I16": "h", "U32": "I", "F64": "d"}
_BYTES = "U8"


def save(model: LinearModel, path: Path) -> None:
    """Write a model, whole or not at all."""
    metadata = {
        "format": FORMAT,
        "labels": json.dumps(model.labels, ensure_ascii=False),
        "documents": str(model.documents),
        "calibration": json.dumps(None if model.calibration is None else asdict(model.calibration)),
    }
    rows, labels = len(model.frequencies), len(model.labels)
    tensors = {
        # Doubles first: a file's data begin at a multiple of eight, and stay there.
        "scales": ("F64", [labels], _numbers("F64", model.scales)),
        "intercepts": ("F64", [labels], _numbers("F64", model.intercepts)),
        "frequencies": ("U32", [rows], _numbers("U32", model.frequencies)),
        "weights": ("I16", [rows, labels], _numbers("I16", model.weights)),
    }
    for block in BLOCKS:
        lines = "\n".join(model.grams[block]).encode()
        tensors[block] = (_BYTES, [len(lines)], lines)
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (kind, shape, data) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end := end + len(data)]}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary:
        parts = (data for _, _, data in tensors.values())
        temporary.write_bytes(b"".join([len(text).to_bytes(8, "little"), text, *parts]))


def load(path: Path) -> LinearModel:
    """Read what `save` wrote.

    Raises:
        ModelError: the file is missing, damaged, or no linear model.
    """
    try:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        metadata = header["__metadata__"]
        if metadata["format"] != FORMAT:
            raise ValueError(f"its format is {metadata['format']!r}, expected {FORMAT!r}")
        return _model(metadata, header, memoryview(content)[8 + length :])
    # A foreign safetensors file may lack any of the keys; a damaged one may hold anything under them.
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
        ConfigError,
    ) as error:
        raise ModelError(
            f"{path} is not a linear model that smolcls wrote ({type(error).__name__}: {error}). "
            "Train it again with: smolcls train --engine linear"
        ) from error


def _model(metadata: Mapping[str, str], header: Mapping[str, Any], data: memoryview) -> LinearModel:
    labels = tuple(json.loads(metadata["labels"]))
    if not all(isinstance(label, str) for label in labels):
        raise ValueError(f"its labels are {labels!r}, expected texts")
    fitted = json.loads(metadata["calibration"])
    grams = {block: _read_lines(header[block], data) for block in BLOCKS}
    model = LinearModel(
        labels,
        grams,
        documents=int(metadata["documents"]),
        frequencies=_read(header["frequencies"], "U32", data),
        weights=_read(header["weights"], "I16", data),
        scales=_read(header["scales"], "F64", data),
        intercepts=_read(header["intercepts"], "F64", data),
        calibration=None if fitted is None else Calibration(**fitted),
    )
    rows = sum(map(len, grams.values()))
    sizes = (len(model.frequencies), len(model.weights), len(model.scales), len(model.intercepts))
    if sizes != (rows, rows * len(labels), len(labels), len(labels)) or len(labels) < 2:
        raise ValueError(f"{rows} n-grams and {len(labels)} labels do not go with tensors of {sizes}")
    if not max(model.frequencies, default=0) <= model.documents < 1 << 53:
        raise ValueError(f"an n-gram is in more than the {model.documents} rows, or they are too many")
    if not all(map(math.isfinite, (*model.scales, *model.intercepts))):
        raise ValueError("a scale or intercept is not a finite number")
    return model


def _read(entry: Mapping[str, Any], kind: str, data: memoryview) -> Sequence[Any]:
    if entry["dtype"] != kind:
        raise ValueError(f"a tensor has the type {entry['dtype']!r}, expected {kind!r}")
    values = array(_CODES[kind])
    values.frombytes(_slice(entry, data))
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _read_lines(entry: Mapping[str, Any], data: memoryview) -> list[str]:
    return str(_slice(entry, data), "utf-8").split("\n")


def _slice(entry: Mapping[str, Any], data: memoryview) -> memoryview:
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= len(data):
        raise ValueError(f"a tensor lies at {begin} to {end} of {len(data)} bytes")
    return data[begin:end]


def _numbers(kind: str, values: Sequence[float]) -> bytes:
    packed = array(_CODES[kind], values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
