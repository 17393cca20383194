"""What the writer of an ONNX model and its reader agree on: the names in the file, and what its metadata holds."""

from __future__ import annotations

from collections.abc import Iterator

FORMAT = "smolcls-onnx-1"
#: The metadata: `format`; a `description` in words; the `tokenizer` as JSON of the package tokenizers; the
#: `first_token` of every prompt, and its keys and values, `first_past`: float32, little endian, in base64, of the shape
#: (2 · layers, kv heads, head size); and the most tokens that the model was trained for, `context`.
KEYS = ("format", "description", "tokenizer", "first_token", "first_past", "context")
#: NumPy's name of the type of `first_past`.
PAST_TYPE = "<f4"


def past_names(layers: int) -> Iterator[str]:
    """The graph's inputs of keys and values, in the order of `first_past`."""
    for layer in range(layers):
        yield f"past.{layer}.key"
        yield f"past.{layer}.value"


def present(name: str) -> str:
    """The graph's output that belongs to an input of keys or values."""
    return f"present{name.removeprefix('past')}"
