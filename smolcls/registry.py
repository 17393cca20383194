"""Names to backends, through the entry-point group `smolcls.backends`.

The built-in backends stand in this project's own `pyproject.toml` in that group, exactly as a
stranger's package registers its own. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from smolcls.classifier import Classifier
from smolcls.errors import ConfigError, SmolclsError

GROUP = "smolcls.backends"


def load(spec: str, **options: Any) -> Classifier:
    """Make a classifier from a specification.

    Args:
        spec: a backend's name, or `name:argument`, where the argument is a model in that backend's
            own terms: `rules`, `llamacpp:model.gguf`, `transformers:runs/x/merged`, `ollama:three-type`.
        options: keyword arguments of the backend: `task`, `calibration`, `min_confidence`, and its own.

    Raises:
        ConfigError: no such backend, or an option it does not have.
        MissingExtraError: the package it needs is not installed.
        SmolclsError: another reason why it cannot be made; the message says which.
    """
    name, colon, argument = spec.partition(":")
    backend = find(name)
    try:
        return backend.from_spec(argument if colon else None, **options)
    except TypeError as error:
        # Only a call that does not fit the constructor is the caller's mistake; it fails before any frame below.
        if error.__traceback__ is not None and "argument" in str(error) and "__init__" in str(error):
            raise ConfigError(f"The backend {name!r} does not take these options: {error}.") from error
        raise


def find(name: str) -> type[Classifier]:
    """The class of a backend by its name.

    Raises:
        ConfigError: no such backend, or its entry point does not give a `Classifier`.
    """
    known = _entry_points()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"No backend {name!r}; installed are: {', '.join(sorted(known))}.{hint}")
    try:
        backend = known[name].load()
    except (ImportError, AttributeError) as error:
        if isinstance(error, SmolclsError):
            raise
        raise ConfigError(f"The backend {name!r} ({known[name].value}) does not load: {error}.") from error
    if not (isinstance(backend, type) and issubclass(backend, Classifier)):
        raise ConfigError(f"The backend {name!r} must be a subclass of smolcls.Classifier; found {backend!r}.")
    return backend


def names() -> list[str]:
    """Names of all installed backends, sorted."""
    return sorted(_entry_points())


def availability() -> Iterator[tuple[str, str | None]]:
    """Each backend's name with None, or why it cannot be used and what mends it."""
    for name in names():
        try:
            yield name, find(name).why_unavailable()
        except SmolclsError as error:
            yield name, str(error)


@lru_cache(maxsize=1)
def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
