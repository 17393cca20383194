"""The errors of smolcls, and the one helper that turns a missing extra into one.

Every error that this library raises on purpose is a `SmolclsError`:

    SmolclsError
    ├── InputError            the text, row or argument given cannot be classified
    ├── ConfigError           a task, `smolcls.toml`, calibration or rules file is wrong
    ├── MissingExtraError     an optional package is not installed
    ├── ModelError            a model is missing, damaged or unfit for the task
    └── BackendError          a backend that was set up could not answer
        ├── BackendTimeoutError    … within its time-out
        ├── BackendUnavailableError    … because its server or device is not there
        └── CircuitOpenError      … and is left alone until its cool-down has passed

A message says what was expected, what was found, and what to do. This module knows no backend.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class SmolclsError(Exception):
    """Base of every error raised on purpose by smolcls."""


class InputError(SmolclsError, ValueError):
    """The text, row or argument given cannot be used."""


class ConfigError(SmolclsError, ValueError):
    """A file or object that configures smolcls is wrong."""


class MissingExtraError(SmolclsError, ImportError):
    """A package that an optional part of smolcls needs is not installed."""


class ModelError(SmolclsError):
    """A model is missing, damaged, or does not fit the task."""


class BackendError(SmolclsError):
    """A backend could not answer."""


class BackendTimeoutError(BackendError, TimeoutError):
    """A backend did not answer within its time-out."""


class BackendUnavailableError(BackendError, ConnectionError):
    """A backend's server or device is not there."""


class CircuitOpenError(BackendError):
    """A stage failed repeatedly and is left alone until its cool-down has passed."""


def pip_line(extra: str) -> str:
    """The command that installs an extra, as shown in messages."""
    return f'pip install "smolcls[{extra}]"'


def missing(module: str, *, extra: str, purpose: str) -> MissingExtraError:
    """The error for a package that is not installed, with the command that installs it."""
    return MissingExtraError(
        f"{purpose} needs the package `{module.partition('.')[0]}`, which is not installed. "
        f"Install it with: {pip_line(extra)}"
    )


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or raise `MissingExtraError` with the command that installs it.

    A package that is there but does not load (a missing system library, say) is reported with
    its own message: telling the user to install it again would not help.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing(error.name or module, extra=extra, purpose=purpose) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingExtraError(
            f"{purpose} needs the package `{module}`, which is installed but does not load: {error}. "
            f"Reinstall it with: {pip_line(extra)}"
        ) from error
