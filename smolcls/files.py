"""Files that are whole or absent, the folder they are kept in, and their fingerprints."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs


def cache_folder() -> Path:
    """Where built models are kept: `SMOLCLS_CACHE`, or the user's cache folder."""
    named = os.environ.get("SMOLCLS_CACHE")
    return user_path(named) if named else platformdirs.user_cache_path("smolcls")


def user_path(path: str | Path) -> Path:
    """A path as a user writes it: `~` is the home folder, where there is one."""
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed over it at the end, removed on any error.

    A reader sees the old file or the new one, never a part. The name is unique, so two processes
    that write the same file do not meet.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all, with the line ends it has: a Modelfile's are tokens of the frame."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def parse_toml(text: str) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        ValueError: it is not TOML, or holds what Python's reader cannot: a number of thousands of digits, say.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
