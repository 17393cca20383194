"""The tree of errors, and the error of a missing extra."""

from __future__ import annotations

from pathlib import Path

import pytest

import smolcls
from smolcls import errors
from smolcls.errors import MissingExtraError, SmolclsError, missing, pip_line, require


def test_every_error_is_a_smolcls_error_and_stands_in_the_tree() -> None:
    found = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, BaseException)]
    assert len(found) == 9
    for error in found:
        assert issubclass(error, SmolclsError)
        assert errors.__doc__ is not None
        assert error.__name__ in errors.__doc__
        assert getattr(smolcls, error.__name__) is error


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.InputError, ValueError),
        (errors.ConfigError, ValueError),
        (errors.MissingExtraError, ImportError),
        (errors.BackendTimeoutError, TimeoutError),
        (errors.BackendUnavailableError, ConnectionError),
    ],
)
def test_errors_are_what_python_calls_them_too(error: type[Exception], builtin: type[Exception]) -> None:
    with pytest.raises(builtin, match="why"):
        raise error("why")


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_package.part", extra="ollama", purpose="Asking Ollama")
    assert str(caught.value) == (
        "Asking Ollama needs the package `no_such_package`, which is not installed. "
        'Install it with: pip install "smolcls[ollama]"'
    )
    assert str(missing("no_such_package", extra="ollama", purpose="Asking Ollama")) == str(caught.value)


def test_a_package_that_is_installed_and_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, line in {
        "broken_library": "raise OSError('libgomp.so.1: cannot open shared object file')",
        "broken_version": "raise RuntimeError('needs another numpy')",
        "broken_name": "from math import no_such_name",
    }.items():
        (tmp_path / f"{name}.py").write_text(line)
        with pytest.raises(MissingExtraError, match=f"`{name}`, which is installed but does not load: ") as caught:
            require(name, extra="llamacpp", purpose="Running a GGUF model")
        assert 'Reinstall it with: pip install "smolcls[llamacpp]"' in str(caught.value)


def test_a_package_that_lacks_one_of_its_own_names_that_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "half_installed.py").write_text("import no_such_dependency.inner")
    with pytest.raises(MissingExtraError, match="needs the package `no_such_dependency`, which is not installed"):
        require("half_installed", extra="train", purpose="Training")


def test_pip_line() -> None:
    assert pip_line("local") == 'pip install "smolcls[local]"'
