"""GGUF models through llama.cpp, in this process.

The prompt's prefix is decoded once and stays in the KV cache as sequence 0; each text of a batch is a
sequence of its own that shares it, so a batch costs its texts' tokens and nothing else. High-level
bindings score one sequence at a time; this file uses the low-level calls, and a lock, for a native
context bears one thread at a time.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

import smolcls.build as builder
from smolcls import prompt
from smolcls.calibration import Calibration
from smolcls.classifier import Classifier, Scores
from smolcls.errors import BackendError, ConfigError, ModelError, pip_line
from smolcls.native import llama, recent_log
from smolcls.scan import scan
from smolcls.scoring import LabelTrie, label_mass
from smolcls.task import Task

_MIN_BATCH = 512
_PHYSICAL_BATCH = 256  # tokens computed at once; bounds the compute buffers, which hold logits for each
_MAX_TEXTS = 32  # texts decoded together
_MAX_SEQUENCES = 256  # llama.cpp's limit for one pool: the prefix, the texts, and their label branches
_PREFIX = 0  # sequence id of the prefix


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens to decode: as sequence `sequence`, which first takes over `parent`, from position `start` on."""

    sequence: int
    parent: int
    start: int
    tokens: tuple[int, ...]

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.start + len(self.tokens)


class LlamaCppClassifier(Classifier):
    """A GGUF model through llama.cpp.

    Args:
        model: path of a GGUF file; None is the embedded default, built on first use.
        task: the task, its name or file; None is the shipped three-type task.
        calibration: a fitted temperature or its file; None takes the one beside the model, if any.
        min_confidence: below this confidence the label is None.
        threads: CPU threads; None is one for each core this process may use.

    Raises:
        MissingExtraError: llama-cpp-python, or for the default the bundled base, is not installed.
        ModelError: the file is missing, damaged, or cannot be loaded.
    """

    name: ClassVar[str] = "llamacpp"

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        task: Task | str | Path | None = None,
        calibration: Calibration | str | Path | None = None,
        min_confidence: float = 0.0,
        threads: int | None = None,
    ) -> None:
        super().__init__(task=task, calibration=calibration, min_confidence=min_confidence)
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ConfigError(f"threads must be a whole number of at least 1; found {threads!r}.")
        self.model_path = builder.build(self.task).model if model is None else Path(model).expanduser()
        scan(self.model_path)
        beside = self.model_path.with_name(builder.CALIBRATION)
        if self.calibration is None and beside.is_file():
            self.calibration = self._checked(beside)
        self._lock = threading.Lock()
        self._engine: _Engine | None = _Engine(self.model_path, self.task, threads or _cores())

    @classmethod
    def why_unavailable(cls) -> str | None:
        """None where the binding and the bundled base are installed."""
        if importlib.util.find_spec("llama_cpp") is None:
            return f"llama-cpp-python is not installed; {pip_line('local')}"
        if not builder.has_bundled_base():
            return f"no embedded model (a GGUF path works: llamacpp:model.gguf); {pip_line('local')}"
        return None

    def score_batch(self, texts: Sequence[str]) -> list[Scores]:
        """Score texts, as many at a time as fit into one decode."""
        rendered = [prompt.render(self.task, text) for text in texts]
        with self._lock:
            if self._engine is None:
                raise BackendError("This classifier was closed; make a new one.")
            return self._engine.score(rendered)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text as it stands in the prompt (no special tokens are parsed)."""
        with self._lock:
            if self._engine is None:
                raise BackendError("This classifier was closed; make a new one.")
            return self._engine.tokenize(text, special=False)

    def close(self) -> None:
        """Free the model and its context."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None


class _Engine:
    """One model with one context; the caller holds the lock."""

    def __init__(self, path: Path, task: Task, threads: int) -> None:
        self.lib = llama()
        self.model: Any = None
        self.context: Any = None
        self.batch: Any = None
        try:
            self._load_model(path)
            self.prefix = self.tokenize(prompt.prefix(task), special=True)
            self.suffix = self.tokenize(prompt.suffix(), special=True)
            labels = [self.tokenize(name, special=False) for name in task.names]
            self.trie = LabelTrie(labels, self._end_of_turn())
            longest = max(len(branch.path) for branch in self.trie.branches)
            # The tokenizer needs at most one token a byte, so this holds the longest text with its label.
            self.capacity = max(_MIN_BATCH, task.max_text_bytes + len(self.suffix) + longest)
            self._make_context(threads)
            self._decode([_Piece(_PREFIX, _PREFIX, 0, tuple(self.prefix))])
        except BaseException:
            self.close()
            raise

    def score(self, prompts: Sequence[prompt.Prompt]) -> list[Scores]:
        """Scores for rendered prompts, in order."""
        tails = [tuple(self.tokenize(item.text, special=False) + self.suffix) for item in prompts]
        scores: list[Scores | None] = [None] * len(prompts)
        for group in self._groups(tails):
            for index, (logits, mass) in zip(group, self._score_group([tails[i] for i in group]), strict=True):
                scores[index] = Scores(self.trie.combine(logits), prompts[index].truncated, mass)
        return [score for score in scores if score is not None]

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        data = text.encode("utf-8")
        buffer = (self.lib.llama_token * (len(data) + 2))()
        vocab = self.lib.llama_model_get_vocab(self.model)
        count = self.lib.llama_tokenize(vocab, data, len(data), buffer, len(buffer), False, special)
        if count < 0:
            raise ModelError(f"The model's tokenizer gives more than one token a byte for {text[:40]!r}.")
        return list(buffer[:count])

    def close(self) -> None:
        if self.batch is not None:
            self.lib.llama_batch_free(self.batch)
        if self.context is not None:
            self.lib.llama_free(self.context)
        if self.model is not None:
            self.lib.llama_model_free(self.model)
        self.batch = self.context = self.model = None

    def _load_model(self, path: Path) -> None:
        parameters = self.lib.llama_model_default_params()
        self.model = self.lib.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self.model:
            raise ModelError(f"llama.cpp cannot load {path}: {recent_log() or 'it gives no reason'}.")
        self.vocabulary = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))

    def _end_of_turn(self) -> int:
        ends = self.tokenize(prompt.END_OF_TURN, special=True)
        if len(ends) != 1:
            raise ModelError(
                f"The model's vocabulary has no token {prompt.END_OF_TURN}; smolcls needs a model with ChatML's tokens, "
                "such as SmolLM2-Instruct."
            )
        return ends[0]

    def _make_context(self, threads: int) -> None:
        trained = self.lib.llama_model_n_ctx_train(self.model)
        single = len(self.prefix) + self.capacity
        if single > trained:
            raise ModelError(
                f"The prompt may take {single} tokens; the model was trained for {trained}. "
                "Lower the task's max_text_bytes."
            )
        branching = len(self.trie.branches) > 1
        self._sequences = _MAX_SEQUENCES if branching else 1 + _MAX_TEXTS
        tokens = len(self.prefix) + self.capacity * (2 if branching else 1)
        parameters = self.lib.llama_context_default_params()
        parameters.n_ctx = tokens
        parameters.n_batch = max(self.capacity, len(self.prefix))
        parameters.n_ubatch = _PHYSICAL_BATCH
        parameters.n_seq_max = self._sequences
        # One pool for all sequences: without it a copied prefix that is only a part aborts the process.
        parameters.kv_unified = True
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.no_perf = True
        self.context = self.lib.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise ModelError(f"llama.cpp cannot make a context of {tokens} tokens: {recent_log() or 'no reason given'}.")
        self.memory = self.lib.llama_get_memory(self.context)
        self.batch = self.lib.llama_batch_init(parameters.n_batch, 0, 1)

    def _groups(self, tails: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
        """Indices of texts that fit into one decode together."""
        group: list[int] = []
        used = 0
        for index, tail in enumerate(tails):
            if group and (used + len(tail) > self.capacity or len(group) == _MAX_TEXTS):
                yield group
                group, used = [], 0
            group.append(index)
            used += len(tail)
        if group:
            yield group

    def _score_group(self, tails: Sequence[tuple[int, ...]]) -> list[tuple[list[list[float]], float]]:
        """For each text the logits at every branch, and the labels' mass at the first one."""
        first, *further = self.trie.branches
        start = len(self.prefix)
        pieces = [_Piece(1 + i, _PREFIX, start, tail + first.path) for i, tail in enumerate(tails)]
        found: list[tuple[list[list[float]], float]] = []
        for row in self._decode(pieces):
            logits = row[list(first.tokens)].tolist()
            top = float(row.max())
            normaliser = top + float(np.log(np.exp(row - top).sum()))
            found.append(([logits], label_mass(logits, normaliser)))
        waiting = [(i, branch) for i in range(len(tails)) for branch in further]
        for begin in range(0, len(waiting), self._wave):
            wave = waiting[begin : begin + self._wave]
            children = [
                _Piece(len(tails) + 1 + n, 1 + i, pieces[i].end, branch.path[len(first.path) :])
                for n, (i, branch) in enumerate(wave)
            ]
            for (i, branch), row in zip(wave, self._decode(children), strict=True):
                found[i][0].append(row[list(branch.tokens)].tolist())
            self._forget(children)
        self._forget(pieces)
        return found

    @property
    def _wave(self) -> int:
        """How many branches are decoded at once: each has a sequence, and all their tokens fit into a batch."""
        longest = max(len(branch.path) for branch in self.trie.branches)
        return max(1, min(self._sequences - 1 - _MAX_TEXTS, self.capacity // max(1, longest)))

    def _decode(self, pieces: Sequence[_Piece]) -> list[npt.NDArray[np.float32]]:
        """Decode pieces together; the logits after each one's last token, copied."""
        batch, count, last = self.batch, 0, []
        for piece in pieces:
            if piece.sequence != piece.parent:
                self.lib.llama_memory_seq_rm(self.memory, piece.sequence, -1, -1)
                self.lib.llama_memory_seq_cp(self.memory, piece.parent, piece.sequence, -1, -1)
            for offset, token in enumerate(piece.tokens):
                batch.token[count] = token
                batch.pos[count] = piece.start + offset
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = piece.sequence
                batch.logits[count] = False
                count += 1
            batch.logits[count - 1] = True
            last.append(count - 1)
        batch.n_tokens = count
        code = self.lib.llama_decode(self.context, batch)
        if code != 0:
            self._forget(pieces)
            raise BackendError(f"llama.cpp could not decode {count} tokens (code {code}): {recent_log() or 'no reason given'}.")
        return [self._logits(index) for index in last]

    def _logits(self, index: int) -> npt.NDArray[np.float32]:
        pointer = self.lib.llama_get_logits_ith(self.context, index)
        if not pointer:
            raise BackendError("llama.cpp gave no logits for a decoded token.")
        row: npt.NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(self.vocabulary,)).copy()
        if not np.isfinite(row).all():
            raise BackendError("llama.cpp gave logits that are not numbers; the model file may be damaged.")
        return row

    def _forget(self, pieces: Sequence[_Piece]) -> None:
        for piece in pieces:
            if piece.sequence != _PREFIX:
                self.lib.llama_memory_seq_rm(self.memory, piece.sequence, -1, -1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
