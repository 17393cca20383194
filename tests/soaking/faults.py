"""What goes wrong during a soak. Each fault begins, lasts a while, and ends; it tells whether it was felt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from smolcls.files import sha256
from soaking.servers import ModelServer, program
from soaking.traffic import Chain, Tally

_PATIENCE = 300.0  # seconds for a build on a busy machine
_LEAST_MB = 30.0  # that counts as pressure


class Fault(Protocol):
    """One kind of trouble."""

    name: str
    #: The stage that must answer again once it is over; "" where none is hit.
    stage: str

    def begin(self) -> None:
        """Break it."""

    def end(self) -> None:
        """Mend it."""

    def felt(self) -> dict[str, Any] | None:
        """What showed that it was there, or None where nothing does yet; asked before `end`."""


@dataclass
class ServerKilled:
    """The server of the `ollama` stage is killed, and started again."""

    server: ModelServer
    tally: Tally
    name = "server killed"
    stage = "ollama"

    def begin(self) -> None:
        self._before = _failures(self.tally, "ollama", "failed", "breaker-open")
        self.server.kill()

    def end(self) -> None:
        self.server.start()

    def felt(self) -> dict[str, Any] | None:
        seen = _failures(self.tally, "ollama", "failed", "breaker-open") - self._before
        return {"answers without it": seen} if seen else None


@dataclass
class ModelMoved:
    """The model's file is moved away while it is in use, the chain is closed and opened anew, and the file comes back.

    The chain that was opened meanwhile finds the file by itself; every other time it is opened anew once more.
    """

    model: Path
    chain: Chain
    tally: Tally
    name = "model file moved away"
    stage = "local"
    _round = 0

    def begin(self) -> None:
        self._before = _failures(self.tally, "local", "unavailable")
        self.model.rename(self._aside())
        self.chain.reopen()

    def end(self) -> None:
        self._aside().rename(self.model)
        self._round += 1
        if self._round % 2:
            self.chain.reopen()

    def felt(self) -> dict[str, Any] | None:
        seen = _failures(self.tally, "local", "unavailable") - self._before
        return {"answers that say so": seen} if seen else None

    def _aside(self) -> Path:
        return self.model.with_name(f"moved-away{self.model.suffix}")


@dataclass
class CacheFull:
    """Another process builds the model that is in use, and cannot write: its file size is limited (RLIMIT_FSIZE).

    The build has to say so in one clear error, and the file that is in use has to stay what it is.
    """

    model: Path
    recipe: Mapping[str, str]
    name = "cache cannot be written (RLIMIT_FSIZE)"
    stage = ""

    def begin(self) -> None:
        before = sha256(self.model)
        said = program("soaking.full_cache", json.dumps(dict(self.recipe))).communicate(timeout=_PATIENCE)[0].strip()
        half = [item.name for item in self.model.parent.glob("*.part")]
        same = sha256(self.model) == before
        self._found = {"error": said[:300], "half-written files": half, "the model is as it was": same}
        self._fine = said.startswith("ModelError: The model cannot be written to ") and not half and same

    def end(self) -> None:
        """The limit went with its process."""

    def felt(self) -> dict[str, Any] | None:
        return self._found if self._fine else None


@dataclass
class MemoryPressure:
    """Another process takes and frees a part of the memory, again and again."""

    part: float
    name = "memory under pressure"
    stage = ""

    def begin(self) -> None:
        self._process = program("soaking.memory", str(self.part))
        assert self._process.stdout is not None
        self._taken = int(self._process.stdout.readline() or 0) / 1e6  # the first round is over, others follow

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def felt(self) -> dict[str, Any] | None:
        return {"MB in the first round": round(self._taken)} if self._taken >= _LEAST_MB else None


def _failures(tally: Tally, stage: str, *outcomes: str) -> int:
    return sum(tally.outcomes[stage, outcome] for outcome in outcomes)
