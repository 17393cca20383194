"""The Modelfile: the same frame for Ollama that training and the other backends use."""

from __future__ import annotations

import math
from pathlib import Path

from smolcls import prompt
from smolcls.errors import ConfigError
from smolcls.files import write_text
from smolcls.task import Task

#: The least context, in tokens; constant for every request, for a change makes Ollama load the model again.
CONTEXT = 2048
LICENCE = "Apache-2.0. Built on SmolLM2 by Hugging Face, Apache-2.0 (https://huggingface.co/HuggingFaceTB)."


def template() -> str:
    """Ollama's TEMPLATE: renders system message and text exactly as `prompt.render` does."""
    return (
        "<|im_start|>system\n{{ .System }}<|im_end|>\n<|im_start|>user\n{{ .Prompt }}"
        f"{prompt.suffix()}{{{{ .Response }}}}"
    )


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


def render(task: Task, model: str) -> str:
    """The text of a Modelfile.

    Args:
        model: path of the GGUF file, relative to the Modelfile or absolute.

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
    lines += ["", f'LICENSE """{LICENCE}"""', ""]
    return "\n".join(lines)


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


def write(task: Task, model: str, path: Path) -> None:
    """Write the Modelfile, whole or not at all."""
    write_text(path, render(task, model))
