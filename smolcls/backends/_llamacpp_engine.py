"""The native side of the llama.cpp backend: a model, a context, and label logits for rendered prompts.

The prompt's prefix is decoded once and stays in the KV cache as sequence 0; each text of a batch is a
sequence of its own that shares it, so a batch costs its texts' tokens and nothing else. High-level
bindings score one sequence at a time; this file uses the low-level calls, and a lock, for a native
context bears one thread at a time. Too many tokens for a batch, or for the cache, would abort the
process: both are sized for the longest prompt that a task allows.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolcls import native, prompt
from smolcls.classifier import Scores
from smolcls.errors import BackendError, ModelError, require
from smolcls.scoring import LabelTrie, label_mass
from smolcls.task import Task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_MIN_BATCH = 512
_PHYSICAL_BATCH = 256  # tokens computed at once; bounds the compute buffers, which hold logits for each
_MAX_TEXTS = 32  # texts decoded together
_MAX_SEQUENCES = 256  # llama.cpp's limit for one pool: the prefix, the texts, and their label branches
_EXTRA_TOKENS = 2  # beyond one a byte, for tokenizers that put a blank before a text
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


class Engine:
    """One model with one context, for one task.

    Attributes:
        description: the model in llama.cpp's words: family, size and quantisation.

    Raises:
        MissingExtraError: llama-cpp-python or numpy is not installed.
        ModelError: llama.cpp cannot load the file, or the model cannot be used for the task.
        BackendError: this process was forked from one that has computed with llama.cpp.
    """

    _model: Any = None
    _context: Any = None
    _batch: Any = None

    def __init__(self, path: Path, task: Task, threads: int) -> None:
        self._np = require("numpy", extra="llamacpp", purpose="Running a GGUF model")
        self._lib = native.llama()
        self._lock = threading.Lock()
        native.forks.computing_here()
        try:
            self._load_model(path)
            self._prefix = self._tokenize(prompt.prefix(task), special=True)
            self._suffix = self._tokenize(prompt.suffix(), special=True)
            self._trie = LabelTrie([self._tokenize(name) for name in task.names], self._end_of_turn())
            # Where all labels share their first tokens, every text is decoded with these.
            self._shared = self._trie.branches[0].path
            self._longest = max(len(branch.path) for branch in self._trie.branches)
            # `_tokenize` bounds the tokens of a text, so this holds the longest one with its label.
            text = task.max_text_bytes + _EXTRA_TOKENS
            self._capacity = max(_MIN_BATCH, text + len(self._suffix) + self._longest)
            self._make_context(threads)
            self._decode([_Piece(_PREFIX, _PREFIX, 0, tuple(self._prefix))])
        except BaseException:
            self.close()
            raise

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # The operating system frees what is left at the interpreter's end; native calls then make noise, and this
        # module's globals may be gone, hence the default argument.
        if not _is_finalizing():
            self._free()

    def score(self, prompts: Sequence[prompt.Prompt]) -> list[Scores]:
        """Scores for rendered prompts, in order. Other threads come in between decodes."""
        native.forks.computing_here()
        tails = self.tails(prompts)
        scores: list[Scores] = []
        for group in self._groups(tails):
            with self._lock:
                found = self._score_group(group)
            for logits, mass in found:
                scores.append(Scores(self._trie.combine(logits), prompts[len(scores)].truncated, mass))
        return scores

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text in which no special token is parsed."""
        with self._lock:
            return self._tokenize(text)

    def tails(self, prompts: Sequence[prompt.Prompt]) -> list[tuple[int, ...]]:
        """For each prompt the token ids of what follows the prefix."""
        with self._lock:  # once for all: each time it may be another thread's for a whole decode
            return [(*self._tokenize(item.text), *self._suffix) for item in prompts]

    def close(self) -> None:
        """Free the model and its context. Calling it twice does no harm."""
        with self._lock:
            self._free()

    def _free(self) -> None:
        if self._batch is not None:
            self._lib.llama_batch_free(self._batch)
        if self._context is not None:
            self._lib.llama_free(self._context)
        if self._model is not None:
            self._lib.llama_model_free(self._model)
        self._batch = self._context = self._model = None

    def _load_model(self, path: Path) -> None:
        native.forget_log()
        parameters = self._lib.llama_model_default_params()
        # A null pointer is falsy; kept as None, so that it is not freed.
        self._model = self._lib.llama_model_load_from_file(os.fsencode(path), parameters) or None
        if self._model is None:
            raise ModelError(f"llama.cpp cannot load {path}: {native.recent_log()}.")
        lib, model = self._lib, self._model
        if (
            lib.llama_model_is_recurrent(model)
            or lib.llama_model_is_hybrid(model)
            or lib.llama_model_has_encoder(model)
        ):
            raise ModelError(
                f"{path} is not a decoder with attention alone; smolcls shares a prompt's beginning between texts, "
                "which needs one, such as SmolLM2."
            )
        self._vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        buffer = ctypes.create_string_buffer(128)
        lib.llama_model_desc(model, buffer, len(buffer))
        self.description = buffer.value.decode("utf-8", "replace")

    def _tokenize(self, text: str, *, special: bool = False) -> list[int]:
        if self._model is None:
            raise BackendError("This classifier was closed; make a new one.")
        data = text.encode("utf-8")
        buffer = (self._lib.llama_token * (len(data) + _EXTRA_TOKENS))()
        vocab = self._lib.llama_model_get_vocab(self._model)
        count = self._lib.llama_tokenize(vocab, data, len(data), buffer, len(buffer), False, special)
        if count < 0:
            raise ModelError(f"The model's tokenizer gives more than one token a byte for {text[:40]!r}.")
        return list(buffer[:count])

    def _end_of_turn(self) -> int:
        ends = self._tokenize(prompt.END_OF_TURN, special=True)
        if len(ends) != 1:
            raise ModelError(
                f"The model's vocabulary has no token {prompt.END_OF_TURN}; smolcls needs a model with ChatML's "
                "tokens, such as SmolLM2-Instruct."
            )
        return ends[0]

    def _make_context(self, threads: int) -> None:
        trained = self._lib.llama_model_n_ctx_train(self._model)
        single = len(self._prefix) + self._capacity
        if single > trained:
            raise ModelError(
                f"The prompt may take {single} tokens; the model was trained for {trained}. "
                "Lower the task's max_text_bytes."
            )
        branching = len(self._trie.branches) > 1
        self._sequences = _MAX_SEQUENCES if branching else 1 + _MAX_TEXTS
        tokens = len(self._prefix) + self._capacity * (2 if branching else 1)
        parameters = self._lib.llama_context_default_params()
        parameters.n_ctx = tokens
        parameters.n_batch = max(self._capacity, len(self._prefix))
        parameters.n_ubatch = _PHYSICAL_BATCH
        parameters.n_seq_max = self._sequences
        # One pool for all sequences: without it a copied prefix that is only a part aborts the process.
        parameters.kv_unified = True
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.no_perf = True
        native.forget_log()
        self._context = self._lib.llama_init_from_model(self._model, parameters) or None
        if self._context is None:
            raise ModelError(f"llama.cpp cannot make a context of {tokens} tokens: {native.recent_log()}.")
        self._memory = self._lib.llama_get_memory(self._context)
        self._batch = self._lib.llama_batch_init(parameters.n_batch, 0, 1)

    def _groups(self, tails: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """Neighbouring texts that fit into one decode together."""
        group: list[tuple[int, ...]] = []
        used = 0
        for tail in tails:
            size = len(tail) + len(self._shared)
            if group and (used + size > self._capacity or len(group) == _MAX_TEXTS):
                yield group
                group, used = [], 0
            group.append(tail)
            used += size
        if group:
            yield group

    def _score_group(self, tails: Sequence[tuple[int, ...]]) -> list[tuple[list[list[float]], float]]:
        """For each text the logits at every branch, and the labels' mass at the first one."""
        start = len(self._prefix)
        pieces = [_Piece(1 + i, _PREFIX, start, tail + self._shared) for i, tail in enumerate(tails)]
        try:
            found = [self._at_root(row) for row in self._decode(pieces)]
            self._walk(pieces, [logits for logits, _ in found])
            return found
        finally:
            # Also after a failure: what stayed in the cache would leave no room for later calls.
            self._forget(pieces)

    def _at_root(self, row: npt.NDArray[np.float32]) -> tuple[list[list[float]], float]:
        logits = row[list(self._trie.branches[0].tokens)].tolist()
        top = float(row.max())
        normaliser = top + float(self._np.log(self._np.exp(row - top).sum()))
        return [logits], label_mass(logits, normaliser)

    def _walk(self, pieces: Sequence[_Piece], found: Sequence[list[list[float]]]) -> None:
        """Append to each text's logits those at the branches below the root, as many at once as fit."""
        waiting = [(i, branch) for i in range(len(pieces)) for branch in self._trie.branches[1:]]
        # Each branch has a sequence of its own, and all their tokens fit into a batch.
        size = max(1, min(self._sequences - 1 - _MAX_TEXTS, self._capacity // max(1, self._longest)))
        for begin in range(0, len(waiting), size):
            wave = waiting[begin : begin + size]
            children = [
                _Piece(1 + len(pieces) + n, 1 + i, pieces[i].end, branch.path[len(self._shared) :])
                for n, (i, branch) in enumerate(wave)
            ]
            try:
                rows = self._decode(children)
            finally:
                self._forget(children)
            for (i, branch), row in zip(wave, rows, strict=True):
                found[i].append(row[list(branch.tokens)].tolist())

    def _decode(self, pieces: Sequence[_Piece]) -> list[npt.NDArray[np.float32]]:
        """Decode pieces together; the logits after each one's last token, copied."""
        if self._context is None:
            raise BackendError("This classifier was closed; make a new one.")
        batch, count, last = self._batch, 0, []
        for piece in pieces:
            if piece.sequence != piece.parent:
                self._lib.llama_memory_seq_rm(self._memory, piece.sequence, -1, -1)
                self._lib.llama_memory_seq_cp(self._memory, piece.parent, piece.sequence, -1, -1)
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
        native.forget_log()
        code = self._lib.llama_decode(self._context, batch)
        if code != 0:
            raise BackendError(f"llama.cpp could not decode {count} tokens (code {code}): {native.recent_log()}.")
        return [self._logits(index) for index in last]

    def _logits(self, index: int) -> npt.NDArray[np.float32]:
        pointer = self._lib.llama_get_logits_ith(self._context, index)
        if not pointer:
            raise BackendError("llama.cpp gave no logits for a decoded token.")
        row: npt.NDArray[np.float32] = self._np.ctypeslib.as_array(pointer, shape=(self._vocabulary,)).copy()
        if not self._np.isfinite(row).all():
            raise BackendError("llama.cpp gave logits that are not numbers; the model file may be damaged.")
        return row

    def _forget(self, pieces: Sequence[_Piece]) -> None:
        for piece in pieces:
            self._lib.llama_memory_seq_rm(self._memory, piece.sequence, -1, -1)
