"""llama.cpp alone: tokens through the binding's plainest calls, the limit for whatever is built on them.

No cached prefix, no label trie, no logits looked at; a model and a context of its own, with the library's defaults.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smolcls import native
from smolcls.errors import BackendError, ModelError

_AT_ONCE = 512  # tokens a decode; the library's own physical batch


class RawRuntime:
    """A GGUF model that evaluates tokens.

    Args:
        path: the file.
        threads: CPU threads.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        ModelError: llama.cpp cannot load the file.
    """

    _model: Any = None
    _context: Any = None

    def __init__(self, path: Path, threads: int) -> None:
        self._lib = native.llama()
        native.forks.computing_here()
        native.forget_log()
        self._model = self._lib.llama_model_load_from_file(
            os.fsencode(path), self._lib.llama_model_default_params()
        ) or None  # fmt: skip
        parameters = self._lib.llama_context_default_params()
        parameters.n_ctx = _AT_ONCE
        parameters.n_threads = parameters.n_threads_batch = threads
        if self._model is not None:
            self._context = self._lib.llama_init_from_model(self._model, parameters) or None
        if self._context is None:
            self.close()
            raise ModelError(f"llama.cpp cannot load {path}: {native.recent_log()}.")

    def evaluate(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens, 512 at once, each time from an empty cache, and wait for the end.

        Raises:
            BackendError: llama.cpp could not.
        """
        for begin in range(0, len(tokens), _AT_ONCE):
            some = tokens[begin : begin + _AT_ONCE]
            self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)
            array = (self._lib.llama_token * len(some))(*some)  # the batch has its address and no reference
            code = self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(array, len(some)))
            if code != 0:
                raise BackendError(f"llama.cpp could not decode {len(some)} tokens (code {code}).")
        self._lib.llama_synchronize(self._context)

    def close(self) -> None:
        """Free the model and its context. Calling it twice does no harm."""
        if self._context is not None:
            self._lib.llama_free(self._context)
        if self._model is not None:
            self._lib.llama_model_free(self._model)
        self._model = self._context = None
