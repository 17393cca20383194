"""Fewer layers: a base without some of its transformer layers, the others numbered anew.

An adapter says itself which layers of its base it was trained on, as PEFT says it: by the ranges (first, end) of
`layer_replication` in its configuration. By them PEFT shortens the torch model, and `shorten` the weights that the
export reads; nothing else knows. https://huggingface.co/docs/peft/developer_guides/lora
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolcls.errors import ConfigError, ModelError

if TYPE_CHECKING:  # numpy is not needed to read what a user asks for
    from smolcls.export.llama import Source, Tensor

#: Layers from the first number up to the second, which is not among them.
Ranges = Sequence[tuple[int, int]]

_COUNT = r"[0-9]{1,4}"
_LAYERS = rf"{_COUNT}(-{_COUNT})?(, ?{_COUNT}(-{_COUNT})?)*"


def read_ranges(keep: int | str) -> Ranges:
    """What `keep_layers` asks for: a count of first layers, or layers such as `0-17,28-29`.

    Raises:
        ConfigError: neither of them, no layer, or layers that do not rise.
    """
    text, ranges = str(keep), list[tuple[int, int]]()
    if re.fullmatch(_COUNT, text):
        ranges = [(0, int(text))]
    elif re.fullmatch(_LAYERS, text):
        parts = [part.partition("-") for part in text.split(",")]
        ranges = [(int(first), int(last or first) + 1) for first, _, last in parts]
    if not ranges or not is_rising(ranges) or any(first == end for first, end in ranges):
        raise ConfigError(
            "keep_layers must be how many of the first layers are kept, such as 20, or rising layers, such as "
            f"0-17,28-29; found {keep!r}."
        )
    return ranges


def replication(keep: int | str | None, layers: int) -> Ranges | None:
    """PEFT's `layer_replication` for a base of so many layers; None where all are kept.

    It ends in an empty range at the base's end: PEFT makes no layer of it, and the adapter so remembers how
    many layers its base has.

    Raises:
        ConfigError: the base has no such layer.
    """
    if keep is None:
        return None
    ranges = read_ranges(keep)
    if ranges[-1][1] > layers:
        raise ConfigError(
            f"keep_layers {keep!r} needs a base of {ranges[-1][1]} layers or more; this one has {layers}."
        )
    return [*ranges, (layers, layers)]


def is_rising(ranges: Ranges) -> bool:
    """Whether no layer comes twice, or after a later one."""
    return all(0 <= first <= end for first, end in ranges) and all(
        one[1] <= other[0] for one, other in pairwise(ranges)
    )


def name_ranges(ranges: Ranges) -> str:
    """The layers as `read_ranges` reads them: `0-17,28-29`."""
    return ",".join(f"{first}-{end - 1}" for first, end in ranges if first < end)


def shorten(source: Source, ranges: Ranges, adapter: Path) -> Source:
    """A base as it was while `adapter` was trained on it: with the layers of `ranges` alone.

    Raises:
        ModelError: the base has another number of layers than the adapter's.
    """
    first, end = ranges[-1]
    if end > source.layers or (first == end and end != source.layers):
        raise ModelError(
            f"{adapter} was trained for another base: it keeps the layers {name_ranges(ranges)} of one with "
            f"{end} layers{'' if first == end else ' or more'}; this one has {source.layers}."
        )
    return _Shorter(source, ranges)


class _Shorter:
    """The kept layers of a source, with everything that is outside its layers."""

    def __init__(self, source: Source, ranges: Ranges) -> None:
        kept = [layer for first, end in ranges for layer in range(first, end)]
        self.heads, self.kv_heads, self.layers = source.heads, source.kv_heads, len(kept)
        self._source, self._places = source, {layer: place for place, layer in enumerate(kept)}

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that is kept, under its new name."""
        for tensor in self._source.tensors():
            match = re.fullmatch(r"blk\.(\d+)\.(.+)", tensor.name)
            if match is None:
                yield tensor
            elif int(match[1]) in self._places:
                yield replace(tensor, name=f"blk.{self._places[int(match[1])]}.{match[2]}")

    def write_metadata(self, writer: Any, layers: int | None = None) -> None:
        """The source's metadata, but for the number of layers."""
        self._source.write_metadata(writer, self.layers if layers is None else layers)
