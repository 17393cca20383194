"""The Modelfile: the same frame for Ollama that training and the other backends use."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smolcls import prompt
from smolcls.errors import ConfigError, ModelError
from smolcls.files import write_text
from smolcls.task import Task

#: The least context, in tokens; constant for every request, for a change makes Ollama load the model again.
CONTEXT = 2048
#: One instruction: its word, and a value in three quotes, in one, or up to the line's end.
_INSTRUCTION = re.compile(r'\s*(\w+)[ \t]+(?:"""(.*?)"""|"([^"\n]*)"|([^\n]*))[ \t]*(?:\n|$)', re.DOTALL)
_COMMENT = re.compile(r"\s*#[^\n]*(?:\n|$)")
LICENCE = "Apache-2.0. Built on SmolLM2 by Hugging Face, Apache-2.0 (https://huggingface.co/HuggingFaceTB)."


def template() -> str:
    """Ollama's TEMPLATE: renders system message and text exactly as `prompt.render` does."""
    return (
        "<|im_start|>system\n{{ .System }}<|im_end|>\n<|im_start|>user\n{{ .Prompt }}"
        f"{prompt.suffix()}{{{{ .Response }}}}"
    )


def licence_of(base: str | Path) -> str | None:
    """The licence of what is built on a base: known of SmolLM2, the bundled one among them; else None."""
    return LICENCE if base == "bundled" or "smollm2" in Path(base).name.lower() else None


def context(task: Task) -> int:
    """Tokens of context that any prompt of the task fits into; Ollama cuts a longer one, and says nothing.

    A token takes at least a byte. The number depends on the task alone.
    """
    frame = prompt.prefix(task) + prompt.suffix() + max(task.names, key=lambda name: len(name.encode()))
    most = len(frame.encode()) + task.max_text_bytes + 1
    return CONTEXT * math.ceil(most / CONTEXT)


def parameters(task: Task) -> dict[str, int | float | str]:
    """PARAMETERs of the model: greedy, one label long, stopped at the end of the turn."""
    longest = max(len(name.encode()) for name in task.names)
    return {
        "temperature": 0,
        "num_ctx": context(task),
        # One token a byte is the most that a label can need; the stop ends it sooner.
        "num_predict": longest + 1,
        "stop": prompt.END_OF_TURN,
    }


def render(task: Task, model: str, licence: str | None = LICENCE) -> str:
    """The text of a Modelfile.

    Args:
        model: path of the GGUF file, relative to the Modelfile or absolute.
        licence: the text of its LICENSE; None for a Modelfile without one.

    Raises:
        ConfigError: the instruction or the path holds what a Modelfile cannot hold.
    """
    system = prompt.system_message(task)
    _check_system(system)
    if not model.isprintable():
        raise ConfigError(f"A Modelfile cannot name {model!r}: the path holds characters that are not printable.")
    lines = [
        f"# {task.name}: answers with one of {', '.join(task.names)}. Made by smolcls.",
        # Without ./ Ollama would take a missing file for the name of a model in its registry.
        f"FROM {model if Path(model).is_absolute() else './' + model}",
        "",
        f'TEMPLATE """{template()}"""',
        "",
        f'SYSTEM """{system}"""',
        "",
    ]
    for key, value in parameters(task).items():
        lines.append(f'PARAMETER {key} "{value}"' if isinstance(value, str) else f"PARAMETER {key} {value}")
    if licence is not None:
        lines += ["", f'LICENSE """{licence}"""']
    return "\n".join([*lines, ""])


def _check_system(system: str) -> None:
    """Refuse what Ollama's parser (parser/parser.go) would read otherwise than it is written."""
    if '"""' in system:
        raise ConfigError('A task\'s instruction and descriptions must not hold """: a Modelfile has no escape for it.')
    dropped = sorted({character for character in system if not (character.isprintable() or character in "\t\r\n")})
    if dropped:
        raise ConfigError(
            f"A task's instruction and descriptions must not hold {', '.join(map(ascii, dropped))}: Ollama drops "
            "characters that are not printable from a Modelfile, and its prompt would differ. Use an ordinary blank."
        )


def write(task: Task, model: str, path: Path, licence: str | None = LICENCE) -> None:
    """Write the Modelfile, whole or not at all."""
    write_text(path, render(task, model, licence))


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What a Modelfile says.

    Attributes:
        model: the GGUF file.
        texts: TEMPLATE, SYSTEM and LICENSE by their names in Ollama's interface.
        parameters: PARAMETERs; `stop` is a list.
    """

    model: Path
    texts: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)

    def request(self) -> dict[str, Any]:
        """What `/api/create` is told beside the file."""
        return {**self.texts, "parameters": self.parameters}


def read(path: Path) -> Modelfile:
    """A Modelfile as this module writes it, or as people write it for one GGUF file.

    Raises:
        ConfigError: it cannot be read, or says more than one file, texts and parameters.
        ModelError: the file that it names is not there.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Expected a Modelfile at {path}; it cannot be read: {error}.") from error
    model: Path | None = None
    found = Modelfile(path)
    for word, value in _instructions(path, text):
        if word == "from" and model is None:
            model = path.parent / Path(value).expanduser()
        elif word in ("template", "system", "license"):
            found.texts[word] = value
        elif word == "parameter":
            _add_parameter(path, found.parameters, value)
        else:
            raise ConfigError(
                f"{path} has the instruction {word.upper()}{' twice' if word == 'from' else ''}; expected one FROM and "
                "TEMPLATE, SYSTEM, PARAMETER, LICENSE. Use Ollama's own command: ollama create NAME -f " + str(path)
            )
    if model is None:
        raise ConfigError(f"{path} has no FROM. Expected a line such as: FROM ./model.gguf")
    if not model.is_file():
        raise ModelError(
            f"{path} names {model}, and there is no such file. Build it with `smolcls build`, or, for a model of "
            f"Ollama's registry, use Ollama's own command: ollama create NAME -f {path}"
        )
    return Modelfile(model, found.texts, found.parameters)


def _instructions(path: Path, text: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while text[at:].strip():
        match = _COMMENT.match(text, at)
        if match is None:
            match = _INSTRUCTION.match(text, at)
            if match is None:
                line = text[at:].lstrip().split("\n", 1)[0]
                raise ConfigError(f"{path} has the line {line[:60]!r}; expected an instruction and its value.")
            value = next(group for group in match.groups()[1:] if group is not None)
            found.append((match[1].lower(), value.strip() if match[4] is not None else value))
        at = match.end()
    return found


def _add_parameter(path: Path, parameters: dict[str, Any], line: str) -> None:
    name, _, written = line.partition(" ")
    text = written.strip()
    if not text:
        raise ConfigError(f"{path} has the PARAMETER {line!r}; expected a name and a value.")
    quoted = len(text) > 1 and text[0] == text[-1] == '"'
    if name == "stop":
        parameters.setdefault("stop", []).append(text[1:-1] if quoted else text)
    else:
        parameters[name] = text[1:-1] if quoted else _value(text)


def _value(text: str) -> int | float | bool | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
