"""A damaged GGUF is refused before llama.cpp sees it."""

from __future__ import annotations

import contextlib
import random
import struct
from pathlib import Path

import pytest

from smolcls import ModelError
from smolcls.scan import scan

F32, F16, Q8_0, Q4_K = 0, 1, 8, 12


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def strings(key: str, values: list[str | bytes]) -> bytes:
    return entry(key, 9, struct.pack("<IQ", 8, len(values)) + b"".join(map(text, values)))


def tensor(name: str, shape: list[int], kind: int = F32, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def gguf(entries: list[bytes], tensors: list[bytes], data: bytes, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


WHOLE = gguf(
    [
        entry("general.architecture", 8, text("llama")),
        entry("llama.block_count", 4, struct.pack("<I", 2)),
        entry("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
        entry("some.flag", 7, b"\1"),
        entry("some.scores", 9, struct.pack("<IQ", 6, 3) + struct.pack("<3f", 1, 2, 3)),
        strings("tokenizer.ggml.tokens", ["a", "b", ""]),
    ],
    [tensor("token_embd.weight", [32, 3], Q8_0), tensor("output_norm.weight", [32], F32, 128)],
    b"\0" * (128 + 128),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_a_whole_file_gives_its_header(path: Path) -> None:
    path.write_bytes(WHOLE)
    header = scan(path)
    assert header.architecture == "llama"
    assert header.tensors == 2
    assert header.metadata["llama.block_count"] == 2
    assert header.metadata["some.flag"] is True
    assert "tokenizer.ggml.tokens" not in header.metadata


def test_a_missing_file(path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no model file .*model\.gguf\. Expected a GGUF file"):
        scan(path)


def test_a_folder(path: Path) -> None:
    path.mkdir()
    with pytest.raises(ModelError, match=r"is not a whole GGUF file: .*Build or download it again"):
        scan(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it ends in the middle of its header"),
        (b"PK\3\4" + b"\0" * 100, r"it starts with b'PK\\x03\\x04' instead of b'GGUF'"),
        (b"<html>not found</html>", "it starts with b'<htm' instead"),
        (b"GGUF" + struct.pack("<IQQ", 1, 1, 1), "its version is 1; expected 2 or 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 1, 1), "its version is 50331648; expected 2 or 3"),
        (gguf([], [], b""), "it claims 0 tensors and 0 keys"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1 << 40), "it claims 1 tensors and 1099511627776 keys"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 1 << 60), "a text in its header is longer than the file"),
        (gguf([entry("a", 99, b"")], [tensor("t", [1])], b"\0" * 32), "a value of the unknown type 99"),
        (gguf([entry("a", 9, struct.pack("<IQ", 9, 1))], [tensor("t", [1])], b""), "a list of the unknown type 9"),
        (
            gguf([entry("a", 9, struct.pack("<IQ", 8, 1 << 60))], [tensor("t", [1])], b""),
            "a list in its header is long",
        ),
        (gguf([entry("a", 9, struct.pack("<IQ", 6, 1 << 60))], [tensor("t", [1])], b""), "goes beyond the file"),
        (gguf([strings("tokenizer.ggml.tokens", ["a", "a"])], [tensor("t", [1])], b"\0" * 4), "holds b'a' twice"),
        (gguf([strings("tokenizer.ggml.tokens", ["a", b"a\0b"])], [tensor("t", [1])], b"\0" * 4), "holds b'a' twice"),
        (gguf([entry("general.alignment", 4, struct.pack("<I", 0))], [tensor("t", [1])], b"\0" * 4), "alignment is 0"),
        (gguf([entry("general.alignment", 8, text("x"))], [tensor("t", [1])], b"\0" * 4), "alignment is 'x'"),
        (gguf([entry("unknown.block_count", 4, struct.pack("<I", 513))], [tensor("t", [1])], b"\0" * 4), "513 layers"),
        (gguf([entry("x.norm_epsilon", 6, struct.pack("<f", -1))], [tensor("t", [1])], b"\0" * 4), "epsilon is -1.0"),
        (gguf([], [tensor("t", [1] * 5)], b"\0" * 4), "the tensor 't' claims 5 dimensions"),
        (gguf([], [tensor("t", [])], b"\0" * 4), "the tensor 't' claims 0 dimensions"),
        (gguf([], [tensor("t", [4, 0])], b"\0" * 4), r"the tensor 't' of type 0 claims the shape \[4, 0\]"),
        (gguf([], [tensor("t", [100, 2], Q4_K)], b"\0" * 999), r"of type 12 claims the shape \[100, 2\]"),
        (gguf([], [tensor("norm", [32], Q8_0)], b"\0" * 34), r"the tensor 'norm' of type 8 claims the shape \[32\]"),
        (gguf([], [tensor("t", [8], F32)], b"\0" * 31), "it has 95 bytes; its tensors need 96"),
        (gguf([], [tensor("t", [8], F16, 1 << 62)], b"\0" * 16), "its tensors need 46116860184273"),
        (gguf([], [tensor("t", [1 << 62, 4], F32)], b"\0" * 64), "its tensors need"),
    ],
)
def test_what_is_wrong_is_said(path: Path, content: bytes, reason: str) -> None:
    path.write_bytes(content)
    with pytest.raises(
        ModelError, match=f"model.gguf is not a whole GGUF file: .*{reason}.*Build or download it again"
    ):
        scan(path)


def test_every_cut_is_noticed(path: Path) -> None:
    for length in range(len(WHOLE)):
        path.write_bytes(WHOLE[:length])
        with pytest.raises(ModelError, match="is not a whole GGUF file"):
            scan(path)


def test_mutated_headers_are_scanned_or_refused(path: Path) -> None:
    """Never another error than `ModelError`, and never one that takes long: lengths are bounded by the file."""
    generator = random.Random(7)
    refused = 0
    for _ in range(600):
        mutated = bytearray(WHOLE)
        for _ in range(generator.choice((1, 1, 2, 4))):
            place = generator.randrange(len(WHOLE) - 256)
            patch = generator.choice((generator.randbytes(1), b"\xff" * 8, b"\0" * 8, generator.randbytes(8)))
            mutated[place : place + len(patch)] = patch
        path.write_bytes(mutated)
        with contextlib.suppress(ModelError):
            assert scan(path).tensors > 0
            continue
        refused += 1
    assert refused > 200
