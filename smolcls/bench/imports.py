"""What a start spends on imports, told apart from the rest of it."""

from __future__ import annotations

import builtins
import importlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self


class ImportClock:
    """Counts the seconds of imports in a `with` block, whoever asks for them.

    An import within an import is a part of it and not counted twice; threads are told apart.

    Attributes:
        seconds: spent so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = threading.local()
        # Both, for import_module() does not go through the statement's function.
        self._originals = builtins.__import__, importlib.import_module

    def __enter__(self) -> Self:
        statement, function = self._originals
        vars(builtins)["__import__"] = self._timed(statement)
        vars(importlib)["import_module"] = self._timed(function)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        vars(builtins)["__import__"], vars(importlib)["import_module"] = self._originals

    def _timed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            if getattr(self._inside, "importing", False):
                return original(*arguments, **named)
            self._inside.importing = True
            began = time.perf_counter()
            try:
                return original(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - began
                self._inside.importing = False

        return timed
