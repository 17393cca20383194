"""What is to be decided: the labels, the instruction, and the files that hold them.

A task knows nothing of models or prompts: `prompt.py` turns it into text.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from smolcls.errors import ConfigError
from smolcls.files import parse_toml

DEFAULT_TASK = "three-type"
SHIPPED_TASKS = ("three-type",)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Label:
    """One label: its name (which is also what the model writes) and what it means."""

    name: str
    description: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip() or self.name != self.name.strip():
            raise ConfigError(f"A label's name must be a non-empty text without blanks around it; found {self.name!r}.")
        _check_text(self.name, "A label's name", allowed="")
        _check_text(self.description, f"The description of the label {self.name!r}")


@dataclass(frozen=True)
class Task:
    """A set of labels with the instruction that a language model reads.

    Args:
        labels: two or more labels, as names, `Label`s or a mapping of names to descriptions.
            Their order is the order of every probability vector.
        name: a short name, used for file names and the Ollama model.
        instruction: the sentence the model reads; the default names the labels.
        describe_labels: whether the labels' descriptions follow the instruction in the prompt.
            They help a model that was not fine-tuned, and cost tokens.
        max_text_bytes: texts longer than this many UTF-8 bytes are shortened (head and tail kept).
        rules: path of a rules file for this task, for the `rules` backend.

    Raises:
        ConfigError: fewer than two labels, a repeated one, or another unusable value.
    """

    labels: tuple[Label, ...]
    name: str = "task"
    instruction: str = ""
    describe_labels: bool = True
    max_text_bytes: int = 1000
    rules: Path | None = field(default=None, compare=False)

    def __init__(
        self,
        labels: Iterable[str | Label] | Mapping[str, str],
        *,
        name: str = "task",
        instruction: str = "",
        describe_labels: bool = True,
        max_text_bytes: int = 1000,
        rules: str | Path | None = None,
    ) -> None:
        if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
            raise ConfigError(f"Task(labels=…) takes a list of labels; found {labels!r}.")
        if isinstance(labels, Mapping):
            labels = [Label(key, text) for key, text in labels.items()]
        made = tuple(item if isinstance(item, Label) else Label(item) for item in labels)
        names = [label.name for label in made]
        if len(made) < 2:
            raise ConfigError(f"A task needs at least two labels; found {names}.")
        if len(set(names)) != len(names):
            twice = sorted({label for label in names if names.count(label) > 1})
            raise ConfigError(f"A task's labels must differ; found twice: {', '.join(twice)}.")
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            # It becomes a file's and an Ollama model's name, which take no more than that everywhere.
            raise ConfigError(
                "A task's name must be 1 to 64 of the letters A to Z, digits, '-' and '_', and start with a letter or "
                f"digit; found {name!r}."
            )
        _check_text(instruction, "A task's instruction")
        if instruction and not instruction.strip():
            raise ConfigError(f"A task's instruction must say what to do, or be left out; found {instruction!r}.")
        if not isinstance(describe_labels, bool):
            raise ConfigError(f"describe_labels must be True or False; found {describe_labels!r}.")
        check_count(max_text_bytes, "max_text_bytes", least=64)
        object.__setattr__(self, "labels", made)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "instruction", instruction or f"Classify the input: {_either(names)}.")
        object.__setattr__(self, "describe_labels", describe_labels)
        object.__setattr__(self, "max_text_bytes", max_text_bytes)
        object.__setattr__(self, "rules", None if rules is None else Path(rules))

    @property
    def names(self) -> tuple[str, ...]:
        """The labels' names, in the order of every probability vector."""
        return tuple(label.name for label in self.labels)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything the model's prompt or answer depends on."""
        content = json.dumps(
            [
                [asdict(label) for label in self.labels],
                self.instruction,
                self.describe_labels,
                self.max_text_bytes,
            ],
            ensure_ascii=False,
        )
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @classmethod
    def load(cls, source: str | Path) -> Task:
        """A shipped task by its name (`three-type`), or a task from a TOML file.

        Raises:
            ConfigError: no such task or file, or a file that is not a task.
        """
        if not isinstance(source, (str, Path)):
            raise ConfigError(f"A task is a Task, a name or the path of a TOML file; found {source!r}.")
        if str(source) in SHIPPED_TASKS:
            return _shipped(str(source))
        path = Path(source)
        try:
            there = path.is_file()
        except OSError:  # a name too long for a file, say
            there = False
        if not there:
            raise ConfigError(
                f"No task {str(source)!r}: expected one of {', '.join(SHIPPED_TASKS)}, or the path of a TOML file."
            )
        return cls.from_toml(_read(path), where=str(path), folder=path.parent)

    @classmethod
    def from_toml(cls, text: str, *, where: str = "task", folder: Path | None = None) -> Task:
        """A task from the text of a TOML file.

        The file holds `name`, `instruction`, `describe_labels`, `max_text_bytes`, `rules` (a path
        beside the file), and a table `[labels]` of names to descriptions.
        """
        try:
            content = parse_toml(text)
        except ValueError as error:
            raise ConfigError(f"{where} is not TOML: {error}.") from error
        labels = content.pop("labels", None)
        if not isinstance(labels, dict) or not all(isinstance(item, str) for item in labels.values()):
            raise ConfigError(
                f'{where} must hold a table [labels] of label names to descriptions, such as: spam = "unwanted mail"; '
                f"found {labels!r}."
            )
        known: dict[str, type | tuple[type, ...]] = {
            "name": str,
            "instruction": str,
            "describe_labels": bool,
            "max_text_bytes": int,
            "rules": str,
        }
        check_keys(content, known, where=where)
        if "rules" in content and folder is not None:
            content["rules"] = folder / content["rules"]
        try:
            return cls(labels, **content)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error


def check_keys(found: Mapping[str, Any], known: Mapping[str, type | tuple[type, ...]], *, where: str) -> None:
    """Raise `ConfigError` for an unknown key or a value of the wrong type in a TOML table."""
    for key, value in found.items():
        if key not in known:
            raise ConfigError(f"{where} has an unknown key {key!r}; known are {', '.join(sorted(known))}.")
        expected = known[key]
        kinds = expected if isinstance(expected, tuple) else (expected,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise ConfigError(f"{where}: {key} must be a {wanted}; found {value!r}.")


def check_count(value: object, what: str, *, least: int, note: str = "") -> None:
    """Raise `ConfigError` unless `value` is a whole number of at least `least`; `note` says why that many."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{what} must be a whole number of at least {least}{note}; found {value!r}.")


def as_task(task: Task | str | Path | None) -> Task:
    """The task itself, one loaded by name or path, or the shipped three-type task for None."""
    if isinstance(task, Task):
        return task
    return Task.load(DEFAULT_TASK if task is None else task)


@cache
def _shipped(name: str) -> Task:
    folder = files("smolcls") / "tasks"
    text = (folder / f"{name.replace('-', '_')}.toml").read_text(encoding="utf-8")
    return Task.from_toml(text, where=f"task {name}", folder=Path(str(folder)))


def _check_text(text: str, what: str, *, allowed: str = "\t\n\r") -> None:
    """Raise `ConfigError` for what has no UTF-8 form, or for control characters, which files and servers drop."""
    if not isinstance(text, str):
        raise ConfigError(f"{what} must be a text; found {text!r}.")
    if any(unicodedata.category(character) in {"Cc", "Cs"} and character not in allowed for character in text):
        raise ConfigError(f"{what} must not hold control characters or lone surrogates; found {text!r}.")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}.") from error


def _either(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
