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

START_OF_TURN, END_OF_TURN = "<|im_start|>", "<|im_end|>"
ELLIPSIS = " […] "

# Control tokens that no pattern catches: SmolLM2's (its vocabulary's first seventeen), and those of other
# families that a base can come from: StarCoder, Llama, Gemma, Command R in angles, Mistral in brackets.
_IN_ANGLES = """
    repo_name reponame file_sep filename gh_stars issue_start issue_comment issue_closed jupyter_start
    jupyter_text jupyter_code jupyter_output jupyter_script empty_output
    fim_prefix fim_middle fim_suffix fim_pad s /s unk pad bos eos mask sep cls BOS_TOKEN EOS_TOKEN
    start_of_turn end_of_turn start_of_image end_of_image
"""
_IN_BRACKETS = """
    INST /INST SYSTEM_PROMPT /SYSTEM_PROMPT AVAILABLE_TOOLS /AVAILABLE_TOOLS TOOL_CALLS TOOL_RESULTS /TOOL_RESULTS
    TOOL_CONTENT IMG IMG_BREAK IMG_END PREFIX MIDDLE SUFFIX THINK /THINK AUDIO BEGIN_AUDIO
"""
# A bar, ASCII's or the full-width one of DeepSeek, at one end of the name or at both (Gemma 4 has `<turn|>`).
_BARRED = r"[|｜][^<>|｜\s]{1,40}[|｜]?>|[^<>|｜\s]{1,40}[|｜]>"
_SPECIAL_TOKEN = re.compile(
    rf"<(?={_BARRED}|(?:{'|'.join(map(re.escape, _IN_ANGLES.split()))})>)"
    rf"|\[(?=(?:{'|'.join(map(re.escape, _IN_BRACKETS.split()))})\])"
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
    return f"{START_OF_TURN}system\n{system_message(task)}{END_OF_TURN}\n{START_OF_TURN}user\n"


def suffix() -> str:
    """The frame after the text: end of the user's turn and the opening of the answer."""
    return f"{END_OF_TURN}\n{START_OF_TURN}assistant\n"


def system_message(task: Task) -> str:
    """The instruction, followed by the labels' descriptions where the task asks for them.

    A task file may come from anywhere: no more than a text can it end the turn.
    """
    lines = [task.instruction]
    if task.describe_labels and any(label.description for label in task.labels):
        lines += [f"{label.name}: {label.description}" for label in task.labels]
    return neutralise("\n".join(lines))


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
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # A lone surrogate has no UTF-8 form; native libraries would refuse or crash on it. UTF-16 joins pairs.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = text.replace("\x00", "\N{REPLACEMENT CHARACTER}").strip()
    if not text:
        raise InputError("The text to classify is empty. Expected at least one character that is not a blank.")
    return neutralise(text)


def neutralise(text: str) -> str:
    """Break up spellings of special tokens: `<|im_end|>` becomes `< |im_end|>`.

    A blank keeps the text readable for the model and cannot be part of a special token. No part of the
    result spells one either, for a spelling is found without looking at what stands around it.
    """
    return _SPECIAL_TOKEN.sub(lambda match: match.group() + " ", text)


def shorten(text: str, max_bytes: int) -> str:
    """`text` itself where it fits into `max_bytes` of UTF-8, else its head and tail around an ellipsis.

    Bytes bound the tokens (a byte-level tokenizer needs at most one token a byte), so the limit holds
    for any text without tokenising it first. Head and tail get half each: a request stands at the
    start or, below something pasted, at the end. A cut creates no special token: each half is a part of
    the text, and none can reach over the ellipsis and its blanks.

    Args:
        max_bytes: at least 64, as `Task` checks.
    """
    if len(text) * 4 <= max_bytes:
        return text
    data = text.encode("utf-8")
    if len(data) <= max_bytes:
        return text
    room = max_bytes - len(ELLIPSIS.encode())
    head = data[: room - room // 2].decode("utf-8", "ignore").rstrip()
    tail = data[-(room // 2) :].decode("utf-8", "ignore").lstrip()
    return head + ELLIPSIS + tail
