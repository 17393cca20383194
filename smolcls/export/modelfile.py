"""The Modelfile: the same frame for Ollama that training and the other backends use."""

from __future__ import annotations

from pathlib import Path

from smolcls import prompt
from smolcls.errors import ConfigError
from smolcls.files import write_text
from smolcls.task import Task

#: Constant for every request: a change of the context's size makes Ollama load the model again.
CONTEXT = 2048
LICENCE = "Apache-2.0. Built on SmolLM2 by Hugging Face, Apache-2.0 (https://huggingface.co/HuggingFaceTB)."


def template() -> str:
    """Ollama's TEMPLATE: renders system message and text exactly as `prompt.render` does."""
    return (
        "<|im_start|>system\n{{ .System }}<|im_end|>\n<|im_start|>user\n{{ .Prompt }}"
        f"{prompt.suffix()}{{{{ .Response }}}}"
    )


def parameters(task: Task) -> dict[str, int | float | str]:
    """PARAMETERs of the model: greedy, one label long, stopped at the end of the turn."""
    longest = max(len(name.encode()) for name in task.names)
    return {
        "temperature": 0,
        "num_ctx": CONTEXT,
        # One token a byte is the most that a label can need; the stop ends it sooner.
        "num_predict": longest + 1,
        "stop": prompt.END_OF_TURN,
    }


def render(task: Task, model: str) -> str:
    """The text of a Modelfile.

    Args:
        model: path of the GGUF file, relative to the Modelfile or absolute.

    Raises:
        ConfigError: the instruction holds `\"\"\"`, which a Modelfile cannot hold.
    """
    system = prompt.system_message(task)
    if '"""' in system:
        raise ConfigError('A task\'s instruction and descriptions must not hold """: a Modelfile has no escape for it.')
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


def write(task: Task, model: str, path: Path) -> None:
    """Write the Modelfile, whole or not at all."""
    write_text(path, render(task, model))
