"""Which chain answers `smolcls.classify()`: the environment, a `smolcls.toml`, or the default.

A `smolcls.toml` holds every option of a router and its stages:

    task = "three-type"          # or the path of a task file beside this one
    min_confidence = 0.0

    [[stage]]
    use = "rules"
    accept = { command = 0.99 }

    [[stage]]
    use = "ollama:three-type"
    threshold = 0.8
    timeout = 0.5
    options = { keep_alive = "1h" }

    [[stage]]
    use = "rules"

Paths in `use` and `options` are the backend's own: relative ones start at the working folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from smolcls import registry
from smolcls.errors import ConfigError, SmolclsError
from smolcls.files import parse_toml
from smolcls.router import ConfidenceRouter
from smolcls.stage import Stage
from smolcls.task import DEFAULT_TASK, SHIPPED_TASKS, Task, as_task, check_keys

FILE_NAME = "smolcls.toml"
VARIABLE = "SMOLCLS_CHAIN"
DEFAULT = "default"
#: The backends that have an embedded model, the faster one first → the format that they need it in.
EMBEDDED = {"onnx": "onnx", "llamacpp": "gguf"}
#: Where n-grams answer without the model: from here up the chain lost no accuracy on rows that neither was trained on.
SURE = 0.92
#: What each stage of the default chain pools, fitted on the same rows.
POOLS = {
    "linear": {"rules": 0.29, "linear": 0.91},
    "onnx": {"linear": 0.41, "onnx": 0.82},
    "llamacpp": {"linear": 0.41, "llamacpp": 0.82},
}

_STAGE_KEYS: dict[str, type | tuple[type, ...]] = {
    "use": str,
    "name": str,
    "threshold": (int, float, dict),
    "accept": (dict, list),
    "timeout": (int, float),
    "retries": int,
    "backoff": (int, float),
    "failures": int,
    "cooldown": (int, float),
    "pool": dict,
    "options": dict,
}


def default_router(task: Task | None = None) -> ConfidenceRouter:
    """The router that `smolcls.classify()` uses.

    `SMOLCLS_CHAIN` names it: the path of a TOML file, a list such as `rules@0.99,ollama:three-type@0.8,rules`,
    or `default`. Without it a `smolcls.toml` in the working folder or in the user's configuration folder
    is taken, else the default chain.

    Raises:
        ConfigError: what was named does not exist or is wrong.
    """
    named = os.environ.get(VARIABLE, "").strip()
    if named:
        try:
            return router_from(named, task)
        except ConfigError as error:
            raise ConfigError(f"{VARIABLE}: {error}") from error
    for path in (Path(FILE_NAME), platformdirs.user_config_path("smolcls") / FILE_NAME):
        if os.path.isfile(path):  # Path.is_file raises for a folder that may not be read
            return load_router(path.absolute(), task)
    return ConfidenceRouter(default_stages(task), task=task)


def router_from(chain: str, task: Task | None = None) -> ConfidenceRouter:
    """A router from a TOML file's path, a list of stages in one line, or `default`.

    Raises:
        ConfigError: the file is missing or wrong, or the line is not a list of stages.
    """
    if chain == DEFAULT:
        return ConfidenceRouter(default_stages(task), task=task)
    # A list may end in .toml too: rules@0.99,rules:own.toml
    if chain.endswith(".toml") and re.split("[,:@]", chain)[0] not in registry.names():
        return load_router(os.path.expanduser(chain), task)
    return ConfidenceRouter([_stage_from_word(word.strip()) for word in chain.split(",") if word.strip()], task=task)


def default_stages(task: Task | None = None) -> list[Stage]:
    """Rules for sure commands, n-grams for what they are sure of, the embedded model, then n-grams and rules.

    A stage is left out where nothing was trained for the task, and the model also where its extra is missing. What
    rules said counts in the n-grams' answer, and what those said in the model's.

    Args:
        task: the task to be decided; one without the label `command` has no first stage.
    """
    from smolcls.backends.linear import shipped_model  # late: `smolcls --help` and other chains need none of it
    from smolcls.build import shipped_adapter

    wanted = as_task(task)
    n_grams = shipped_model(wanted) is not None
    # A base that was not fine-tuned for the task answers at random, and is sure of it.
    model = None if shipped_adapter(wanted) is None else embedded()
    stages = []
    by_rules = "command" in wanted.names and (n_grams or model is not None)
    if by_rules:
        stages.append(Stage("rules", accept={"command": 0.99}))
    linear = Stage("linear", pool=POOLS["linear"] if by_rules else None)
    if model is not None:
        if n_grams:
            stages.append(linear.with_threshold(SURE))
        stages.append(Stage(model, pool=POOLS[model] if n_grams else None))
    if n_grams:
        stages.append(linear)
    return [*stages, Stage("rules")]


def embedded() -> str | None:
    """The backend that runs the embedded model here: the first one of `EMBEDDED` that is installed, or None."""
    for name in EMBEDDED:
        with contextlib.suppress(SmolclsError):
            if registry.find(name).why_unavailable() is None:
                return name
    return None


def load_router(path: str | Path, task: Task | None = None) -> ConfidenceRouter:
    """The router that a `smolcls.toml` describes.

    Args:
        task: overrides the file's own.

    Raises:
        ConfigError: the file is missing or wrong; the message names the key.
    """
    path = Path(path)
    try:
        content = parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}.") from error
    check_keys(content, {"task": str, "min_confidence": (int, float), "stage": list}, where=str(path))
    tables = content.get("stage", [])
    if not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path} must hold at least one [[stage]] table with a key `use`.")
    try:
        stages = [_stage(table, f"stage {number}") for number, table in enumerate(tables, start=1)]
        own = _task(content.get("task", DEFAULT_TASK), path.parent) if task is None else task
        return ConfidenceRouter(stages, task=own, min_confidence=content.get("min_confidence", 0.0))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def dump(router: ConfidenceRouter, *, task_file: str | Path | None = None) -> str:
    """The text of a `smolcls.toml` that makes this router again; only what differs from the defaults is written.

    Args:
        task_file: where the router's task can be read, from the folder that the text will lie in; needed
            for a task that smolcls does not ship.

    Raises:
        ConfigError: a stage or the task cannot be written: it was made in Python and has no name or file.
    """
    lines = [f"task = {_toml(_task_name(router.task) if task_file is None else task_file)}"]
    if router.min_confidence > 0:
        lines.append(f"min_confidence = {_toml(router.min_confidence)}")
    for stage in router.stages:
        if not isinstance(stage.classifier, str):
            raise ConfigError(f"The stage {stage.name!r} was given as an object; only specifications can be written.")
        lines += ["", "[[stage]]", f"use = {_toml(stage.classifier)}"]
        usual = Stage(stage.classifier)
        for key in _STAGE_KEYS:
            if key != "use" and getattr(stage, key) != getattr(usual, key):
                lines.append(f"{key} = {_toml(getattr(stage, key))}")
    return "\n".join(lines) + "\n"


def _stage(table: dict[str, Any], where: str) -> Stage:
    check_keys(table, _STAGE_KEYS, where=where)
    if "use" not in table:
        raise ConfigError(f'{where} lacks the key `use`, such as use = "llamacpp".')
    options = dict(table)
    try:
        return Stage(options.pop("use"), **options)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _stage_from_word(word: str) -> Stage:
    spec, *threshold = word.rsplit("@", 1)
    try:
        if not spec:
            raise ValueError("it names no backend")
        return Stage(spec, threshold=float(threshold[0]) if threshold else 0.0)
    except ValueError as error:  # a threshold out of its range too: ConfigError is one
        reason = str(error).rstrip(".")
        raise ConfigError(f"Expected stages such as rules@0.99,onnx@0.8,rules; found {word!r}: {reason}.") from error


def _task(name: str, folder: Path) -> Task:
    try:
        return Task.load(name if name in SHIPPED_TASKS else folder / os.path.expanduser(name))
    except ConfigError as error:
        raise ConfigError(f"task: {error}") from error


def _task_name(task: Task) -> str:
    if task.name not in SHIPPED_TASKS or task != Task.load(task.name):
        raise ConfigError(
            f"The task {task.name!r} is not one that smolcls ships; say where its file is: dump(router, task_file=…)."
        )
    return task.name


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(float(value))  # of numpy's float, which is one, repr() shows the type as well
    if isinstance(value, (str, Path)):
        # A TOML basic string escapes as JSON does, but for DEL.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return "[" + ", ".join(_toml(item) for item in items) + "]"
    raise ConfigError(f"{value!r} cannot be written to a TOML file.")
