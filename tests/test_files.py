"""Files are whole or absent."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from smolcls.files import cache_folder, read_json, replacing, sha256, user_path, write_text


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_a_file_is_written_beside_and_renamed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["file.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    texts = [str(number) * 50_000 for number in range(8)]
    threads = [threading.Thread(target=write_text, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert names(tmp_path) == ["file.txt"]


def test_text_keeps_its_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "a\nb\r\nß")
    assert (tmp_path / "file.txt").read_bytes() == b"a\nb\r\n\xc3\x9f"


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 3_000_000)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_read_json(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_text(path, '{"a": [1]}')
    assert read_json(path) == {"a": [1]}
    for content, reason in (("[1]", "not a JSON object"), ("[" * 100_000, "nested too deeply"), ("{", "Expecting")):
        path.write_text(content)
        with pytest.raises(ValueError, match=reason):
            read_json(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match="utf-8"):
        read_json(path)


def test_the_cache_folder_is_the_users_or_the_one_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOLCLS_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SMOLCLS_CACHE", "~/models")
    assert cache_folder() == tmp_path / "models"
    monkeypatch.setenv("SMOLCLS_CACHE", "")
    assert cache_folder().name == "smolcls"


def test_a_home_that_is_not_there_is_left_as_it_is_written() -> None:
    assert user_path("~no-such-user/model.gguf") == Path("~no-such-user/model.gguf")
