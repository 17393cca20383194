"""The ONNX Runtime side of the onnx backend: a session, and label logits for rendered prompts.

The prompt's prefix goes through the graph once; its keys and values are given to every call. A text is one pass,
however many labels there are: behind it stand the tokens of all label branches, each of which sees the text and the
tokens that lead to it, and no other branch. A batch is a pass a text, for these passes use the processor fully and
joined ones are no faster.
"""

from __future__ import annotations

import base64
import math
import os
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolcls import native, prompt
from smolcls.classifier import Scores
from smolcls.errors import BackendError, ModelError, SmolclsError, require
from smolcls.export.onnx_format import FORMAT, KEYS, PAST_TYPE, present
from smolcls.scoring import LabelTrie
from smolcls.task import Task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_EXTRA, _PURPOSE = "onnx", "Running an ONNX model"
_ERRORS_ONLY = 3  # ONNX Runtime's severity from which it prints
# A thread that has nothing to do looks for work this long, in microseconds, before it sleeps. By default ONNX Runtime
# takes a millisecond and more: a call alone is then no faster, beside two busy processes it takes 1.2 to 1.5 times as
# long, and each answer costs 40 ms of CPU time after it. Without any, a call alone takes 1.2 times as long. Releases
# that do not know the option ignore it.
_SPIN = "20"
_HIDDEN = -1e9  # added to the attention that a token must not pay

#: A model of one node: MatMulInteger of the input `a`, four unsigned bytes, and four signed bytes of 127.
_PROBE = base64.b64decode(
    b"CAk6WAoYCgFhCgFiEgF5Ig1NYXRNdWxJbnRlZ2VyEgFwKg8IBAgBEANCAWJKBH9/f39aEwoBYRIOCgwIAhIICgIIAQoCCARiEwoBeRIOCgwI"
    b"BhIICgIIAQoCCAFCBAoAEBI="
)

forks = native.ForkGuard("ONNX Runtime")


class Engine:
    """One session for one task.

    Attributes:
        description: the model's family, size and quantisation.

    Raises:
        MissingExtraError: onnxruntime, tokenizers or numpy is not installed.
        ModelError: the file is missing or damaged, was not made by smolcls, or cannot be used for the task.
        BackendError: this process was forked from one that has computed with ONNX Runtime.
    """

    def __init__(self, path: Path, task: Task, threads: int) -> None:
        self._np = require("numpy", extra=_EXTRA, purpose=_PURPOSE)
        self._runtime = require("onnxruntime", extra=_EXTRA, purpose=_PURPOSE)
        self._lock = threading.Lock()
        forks.computing_here()
        self._session, metadata = self._open(path, threads)
        native.trim_memory()  # what reading the file took, about half of its size, before more is taken
        self._past: dict[str, Any] = {}
        # The bias of the longest text so far, zero between calls. Were each call to make its own, up to 17 MB, the C
        # library would keep as much for every thread that calls.
        self._bias = self._np.zeros(0, self._np.float32)
        missing = [key for key in KEYS if key not in metadata]
        if missing or metadata["format"] != FORMAT:
            raise ModelError(
                f"{path} is no model of smolcls: expected the format {FORMAT}; found "
                f"{metadata.get('format')!r}. Build one with: smolcls build --format onnx"
            )
        try:
            self._prepare(metadata, task)
        except SmolclsError:
            raise
        except Exception as error:  # what a damaged file makes of tokenizer, shapes or numbers is not told apart
            raise ModelError(f"{path} is damaged: {error}. Build it again.") from error
        native.trim_memory()  # what reading the tokenizer took

    def score(self, prompts: Sequence[prompt.Prompt]) -> list[Scores]:
        """Scores for rendered prompts, in order. Other threads come in between texts."""
        forks.computing_here()
        return [Scores(self._trie.combine(self._logits(self.tail(item))), item.truncated) for item in prompts]

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text in which no special token is parsed."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def tail(self, rendered: prompt.Prompt) -> list[int]:
        """Token ids of what follows the prefix."""
        return self.tokenize(rendered.text) + self._suffix

    def evaluated(self, rendered: prompt.Prompt) -> list[int]:
        """Token ids of all that is computed for a prompt behind its prefix."""
        return self.tail(rendered) + self._tree

    def close(self) -> None:
        """Free the model. Calling it twice does no harm."""
        with self._lock:
            self._session = None
            self._past.clear()
        native.trim_memory()

    def _open(self, path: Path, threads: int) -> tuple[Any, dict[str, str]]:
        """A session, and what the file says of itself."""
        if not os.path.isfile(path):  # Path.is_file raises for a name that no file can have
            raise ModelError(f"There is no model file {path}. Expected an ONNX file that smolcls has built.")
        self._runtime.disable_telemetry_events()
        try:
            session = _session(self._runtime, os.fspath(path), threads, exact=_saturates(self._runtime))
            return session, session.get_modelmeta().custom_metadata_map
        except Exception as error:  # its errors have no common class, and their texts come from within
            raise ModelError(f"ONNX Runtime cannot load {path}: {_line(error)}. Build it again.") from error

    def _prepare(self, metadata: dict[str, str], task: Task) -> None:
        np = self._np
        self.description = metadata["description"]
        tokenizers = require("tokenizers", extra=_EXTRA, purpose=_PURPOSE)
        # from_buffer raises a ValueError for damaged content; from_str a bare Exception.
        self._tokenizer = tokenizers.Tokenizer.from_buffer(metadata["tokenizer"].encode())
        first, *frame = self.tokenize(prompt.prefix(task))
        self._suffix, ends = map(self.tokenize, (prompt.suffix(), prompt.END_OF_TURN))
        if first != int(metadata["first_token"]) or len(ends) != 1:
            raise ModelError("The model's vocabulary lacks ChatML's tokens; smolcls needs a model such as SmolLM2.")
        # From here on the spelling of a special token is read as the characters it is made of.
        self._tokenizer.encode_special_tokens = True
        self._trie = LabelTrie([self.tokenize(name) for name in task.names], ends[0])
        self._candidates = sorted({token for branch in self._trie.branches for token in branch.tokens})
        columns = {token: column for column, token in enumerate(self._candidates)}
        self._columns = [[columns[token] for token in branch.tokens] for branch in self._trie.branches]
        self._plant_tree()
        room = 1 + len(frame) + task.max_text_bytes + len(self._suffix) + len(self._tree)
        if room > int(metadata["context"]):
            raise ModelError(
                f"The prompt with its labels may take {room} tokens; the model reads at most {metadata['context']}. "
                "Lower the task's max_text_bytes, or shorten the labels."
            )
        past = [item for item in self._session.get_inputs() if item.name.startswith("past.")]
        _, heads, _, size = past[0].shape
        values = np.frombuffer(base64.b64decode(metadata["first_past"]), PAST_TYPE)
        values = values.reshape(len(past), 1, heads, 1, size)
        names = [item.name for item in past]
        self._past = dict(zip(names, map(self._value, values), strict=True))
        self._start = 1
        _, *found = self._run(frame, [*range(1, 1 + len(frame))], None, [0], [present(name) for name in names])
        self._past = dict(zip(names, found, strict=True))
        self._start = 1 + len(frame)

    def _plant_tree(self) -> None:
        """The tokens that lead to the branches, each once, and which of them see each other."""
        np = self._np
        paths: dict[tuple[int, ...], int] = {}
        for branch in self._trie.branches:
            for end in range(1, len(branch.path) + 1):
                paths.setdefault(branch.path[:end], len(paths))
        self._tree = [path[-1] for path in paths]
        self._depths = [len(path) for path in paths]
        self._sight = np.full((len(paths), len(paths)), _HIDDEN, np.float32)
        for path, place in paths.items():  # what leads to a path stands before it
            if len(path) > 1:
                self._sight[place] = self._sight[paths[path[:-1]]]
            self._sight[place, place] = 0.0
        #: For each branch the place of its last token behind the text; -1 is the text's own last token.
        self._places = [paths[branch.path] if branch.path else -1 for branch in self._trie.branches]

    def _logits(self, tail: list[int]) -> list[list[float]]:
        """The logits at every branch, of its tokens."""
        length, end = len(tail), self._start + len(tail)
        positions = [*range(self._start, end), *(end - 1 + depth for depth in self._depths)]
        [logits] = self._run(tail + self._tree, positions, self._sight, [length + place for place in self._places])
        rows = logits.numpy()[0].tolist()
        if not all(math.isfinite(value) for row in rows for value in row):
            raise BackendError("The model gave logits that are not numbers; its file may be damaged.")
        return [[row[column] for column in columns] for row, columns in zip(rows, self._columns, strict=True)]

    def _run(
        self,
        tokens: list[int],
        positions: list[int],
        sight: npt.NDArray[np.float32] | None,
        rows: list[int],
        further: Sequence[str] = (),
    ) -> list[Any]:
        """The logits at `rows`, and further outputs; `sight` is the bias of the last tokens to each other."""
        np = self._np
        given = {"tokens": [tokens], "positions": [positions], "rows": rows, "candidates": self._candidates}
        feed = {name: self._value(np.array(value, np.int64)) for name, value in given.items()}
        length, width = len(tokens), self._start + len(tokens)
        seeing = 0 if sight is None else len(sight)
        with self._lock:
            if self._session is None:
                raise BackendError("This classifier was closed; make a new one.")
            if length * width > len(self._bias):
                self._bias = np.zeros(length * width, np.float32)
            bias = self._bias[: length * width].reshape(1, 1, length, width)
            last = bias[..., length - seeing :, width - seeing :]
            try:
                last[...] = 0.0 if sight is None else sight
                feed |= {"bias": self._value(bias), **self._past}
                found: list[Any] = self._session.run_with_ort_values(["logits", *further], feed)
            except Exception as error:  # as in `_open`
                raise BackendError(f"ONNX Runtime could not compute {length} tokens: {_line(error)}.") from error
            finally:
                last[...] = 0.0
        return found

    def _value(self, array: Any) -> Any:
        return self._runtime.OrtValue.ortvalue_from_numpy(self._np.ascontiguousarray(array))


def _session(runtime: Any, model: str | bytes, threads: int, *, exact: bool = False) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN)
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    # The fall-back is to the same provider, and prints so.
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=False)


@cache
def _saturates(runtime: Any) -> bool:
    """Whether this processor's sums of products of bytes stop at the largest number of 16 bit.

    Those without VNNI do (AVX2, the first AVX-512), and give wrong answers: under emulation 0.65 of the labels were
    right that are 0.93 with the exact sums, which take 1.6 times as long where the others are exact too.
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    numpy = require("numpy", extra=_EXTRA, purpose=_PURPOSE)
    [found] = _session(runtime, _PROBE, 1).run(None, {"a": numpy.full((1, 4), 255, numpy.uint8)})
    return int(found.item()) != 4 * 255 * 127


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
