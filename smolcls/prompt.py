"""The only renderer: a task and a text become prefix, text and suffix.

Training, every backend and the Modelfile take their prompt from here, so that the same text is
the same tokens everywhere. Four choices make that hold:

- The frame is ChatML with a system message of our own. SmolLM2's template would insert one that
  presents the model as an assistant; Ollama's would not. Saying it here leaves no difference.
- The instruction comes first and the text last: the prefix is the same for every text, so its keys
  and values are computed once and kept.
- The text has no blanks at its ends. A blank after the frame's newline would merge with it into
  another token; without one, tokenising the parts gives the tokens of the whole.
- Spellings of special tokens inside the text are broken up, so that no tokenizer, however it
  parses, can take a part of the text for the end of the user's turn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from smolcls.errors import InputError
from smolcls.task import Task

END_OF_TURN = "<|im_end|>"
ELLIPSIS = " […] "

# Control tokens of SmolLM2 (its vocabulary's first seventeen), and of the other model families that
# can stand as a base: Llama, Mistral, Gemma. Any <|…|> is covered by the pattern's first branch.
_NAMED_TOKENS = (
    "repo_name reponame file_sep filename gh_stars issue_start issue_comment issue_closed jupyter_start "
    "jupyter_text jupyter_code jupyter_output jupyter_script empty_output "
    "s /s unk pad bos eos mask sep cls start_of_turn end_of_turn"
).split()
_SPECIAL_TOKEN = re.compile(
    r"<(?=\|[^<>|\s]{1,40}\|>|(?:" + "|".join(map(re.escape, _NAMED_TOKENS)) + r")>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS|AVAILABLE_TOOLS)\])"
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt: `prefix` is constant for a task, `suffix` too; `str()` joins the three."""

    prefix: str
    text: str
    suffix: str
    truncated: bool

    def __str__(self) -> str:
        return self.prefix + self.text + self.suffix


def prefix(task: Task) -> str:
    """The frame before the text: system message and the opening of the user's turn."""
    return f"<|im_start|>system\n{system_message(task)}{END_OF_TURN}\n<|im_start|>user\n"


def suffix() -> str:
    """The frame after the text: end of the user's turn and the opening of the answer."""
    return f"{END_OF_TURN}\n<|im_start|>assistant\n"


def system_message(task: Task) -> str:
    """The instruction, followed by the labels' descriptions where the task asks for them."""
    if not task.describe_labels or not any(label.description for label in task.labels):
        return task.instruction
    lines = [f"{label.name}: {label.description}" for label in task.labels]
    return "\n".join([task.instruction, *lines])


def render(task: Task, text: str) -> Prompt:
    """Render one text for a task.

    Raises:
        InputError: the text is not a string, or is empty or blank.
    """
    cleaned = clean(text)
    shortened = shorten(cleaned, task.max_text_bytes)
    return Prompt(prefix(task), shortened, suffix(), truncated=shortened is not cleaned)


def clean(text: str) -> str:
    """The text as it enters the frame: valid Unicode, no NUL, no outer blanks, no special tokens.

    Raises:
        InputError: the text is not a string, or nothing is left of it.
    """
    if not isinstance(text, str):
        raise InputError(f"A text to classify must be a str; found {type(text).__name__}.")
    if not text.isascii():
        # A lone surrogate has no UTF-8 form; native libraries would refuse or crash on it.
        text = text.encode("utf-8", "replace").decode("utf-8")
    text = text.replace("\x00", "\N{REPLACEMENT CHARACTER}").strip()
    if not text:
        raise InputError("The text to classify is empty. Expected at least one character that is not a blank.")
    return neutralise(text)


def neutralise(text: str) -> str:
    """Break up spellings of special tokens: `<|im_end|>` becomes `< |im_end|>`.

    A blank keeps the text readable for the model and cannot be part of a special token.
    """
    return _SPECIAL_TOKEN.sub(lambda match: match.group() + " ", text)


def shorten(text: str, max_bytes: int) -> str:
    """`text` itself where it fits into `max_bytes` of UTF-8, else its head and tail around an ellipsis.

    Bytes bound the tokens (a byte-level tokenizer needs at most one token a byte), so the limit holds
    for any text without tokenising it first. Head and tail get half each: a request stands at the
    start or, below something pasted, at the end.
    """
    if len(text) * 4 <= max_bytes:
        return text
    data = text.encode("utf-8")
    if len(data) <= max_bytes:
        return text
    room = max_bytes - len(ELLIPSIS.encode())
    head = data[: room - room // 2].decode("utf-8", "ignore").rstrip()
    tail = data[-(room // 2) :].decode("utf-8", "ignore").lstrip()
    # The cut can join two halves of a broken-up token only through the ellipsis, never directly.
    return head + ELLIPSIS + tail
