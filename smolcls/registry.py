"""Names to backends, through the entry-point group `smolcls.backends`.

The built-in backends stand in this project's own `pyproject.toml` in that group, exactly as a
stranger's package registers its own. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
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
    if not isinstance(spec, str):
        raise ConfigError(f"A backend is named by a text such as 'llamacpp' or 'llamacpp:model.gguf'; found {spec!r}.")
    name, colon, argument = spec.partition(":")
    backend = find(name)
    try:
        return backend.from_spec(argument if colon else None, **options)
    except TypeError as error:
        # Only a call that does not fit from_spec or the constructor is the caller's mistake: it fails before any
        # frame below from_spec's. Elsewhere a TypeError is a bug, and stays one.
        below = error.__traceback__.tb_next if error.__traceback__ else None
        if (below is not None and below.tb_next is not None) or "argument" not in str(error):
            raise
        raise ConfigError(
            f"The backend {name!r} cannot be made from {spec!r} with these options ({error}). "
            f"It takes: {', '.join(_options(backend)) or 'none'}."
        ) from error


def locate(spec: str, **options: Any) -> Path | None:
    """The file or folder of the model that `load` would load; None where there is none to look at.

    Raises:
        SmolclsError: as `load`, as far as it can be told without loading.
    """
    name, colon, argument = spec.partition(":")
    return find(name).locate(argument if colon else None, **options)


def find(name: str) -> type[Classifier]:
    """The class of a backend by its name.

    Raises:
        ConfigError: no such backend, two of the name, or one whose entry point does not give a `Classifier`.
    """
    known = _entry_points()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"No backend {name!r}; installed are: {', '.join(sorted(known))}.{hint}")
    point, *others = known[name]
    if others:
        places = ", ".join(sorted(item.value for item in known[name]))
        raise ConfigError(f"Several installed packages call their backend {name!r} ({places}); uninstall one.")
    try:
        backend = point.load()
    except SmolclsError:
        raise
    except Exception as error:  # a stranger's module may raise anything while it is imported
        raise ConfigError(
            f"The backend {name!r} ({point.value}) does not load: {type(error).__name__}: {error}. "
            "Update or uninstall the package that brought it."
        ) from error
    if not (isinstance(backend, type) and issubclass(backend, Classifier)):
        raise ConfigError(f"The backend {name!r} must be a subclass of smolcls.Classifier; found {backend!r}.")
    if inspect.isabstract(backend):
        lacking = ", ".join(sorted(backend.__abstractmethods__))
        raise ConfigError(f"The backend {name!r} ({point.value}) must implement {lacking}.")
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


@cache
def _entry_points() -> dict[str, list[EntryPoint]]:
    """Entry points by name; one that is found twice, as beside an editable install, counts once."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, {})[point.value] = point
    return {name: list(points.values()) for name, points in found.items()}


def _options(backend: type[Classifier]) -> list[str]:
    parameters = list(inspect.signature(backend.from_spec).parameters.values())[1:]
    if any(item.kind is item.VAR_KEYWORD for item in parameters):
        parameters += list(inspect.signature(backend.__init__).parameters.values())[1:]
    return [item.name for item in parameters if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)]
