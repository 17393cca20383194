"""How much memory, how many threads and open files this process has, and whether they grow."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_EVERY = 0.2  # seconds between two samples
_WARM_UP = 0.1  # part of the run that is left out: allocators and pools fill up first


@dataclass(frozen=True, slots=True)
class Usage:
    """What the process holds; of its memory what no file backs, for the system takes those pages away under pressure.

    Attributes:
        memory_mb: resident anonymous memory, in 10^6 bytes.
    """

    memory_mb: float
    threads: float
    open_files: float

    @classmethod
    def now(cls) -> Usage:
        """As /proc says."""
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
        memory = (resident - shared) * os.sysconf("SC_PAGE_SIZE") / 1e6
        # The listing of the open files opens one more.
        return cls(memory, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")) - 1)


#: What may be added between the first third and the last. A third of a short run sees only a few faults, and not the
#: same ones; over a long run anything that leaks with calls or faults passes these by far.
ALLOWED = Usage(memory_mb=24.0, threads=4.0, open_files=8.0)


class Sampler(threading.Thread):
    """Samples until it is stopped."""

    def __init__(self) -> None:
        super().__init__(name="soak-sampler", daemon=True)
        self.samples: list[Usage] = []
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(_EVERY):
            self.samples.append(Usage.now())

    def stop(self) -> None:
        """End it, and wait for the end."""
        self._stop_asked.set()
        self.join()


def growth(samples: Sequence[Usage]) -> tuple[bool, dict[str, Any]]:
    """Whether nothing grew from the first third to the last, and the numbers.

    A third is stood for by its lowest twentieth: faults add threads and sockets that go again, and for as long as calls
    are left in a router that was closed its models lie beside those of the next one. What leaks stays.
    """
    kept = samples[int(len(samples) * _WARM_UP) :]
    third = len(kept) // 3
    if third < 4:
        return False, {"samples": len(samples)}
    first, last = _low(kept[:third]), _low(kept[-third:])
    limits = asdict(ALLOWED) | {"memory_mb": max(ALLOWED.memory_mb, 0.05 * first.memory_mb)}
    before, after = asdict(first), asdict(last)
    fine = all(after[name] - before[name] <= limits[name] for name in limits)
    tenth = max(1, len(kept) // 10)
    tenths = [[item.memory_mb for item in kept[begin : begin + tenth]] for begin in range(0, len(kept), tenth)]
    course = [[round(min(values)), round(statistics.median(values))] for values in tenths]
    return fine, {
        "first third": before, "last third": after, "may grow by": limits, "samples": len(samples),
        "memory_mb of each tenth, least and median": course,
    }  # fmt: skip


def settled(before: Usage, patience: float) -> tuple[bool, dict[str, Any]]:
    """Whether threads and open files come back to what they were, within so many seconds."""
    until = time.monotonic() + patience
    while True:
        now = Usage.now()
        back = now.threads <= before.threads and now.open_files <= before.open_files
        if back or time.monotonic() > until:
            return back, {"before": asdict(before), "after": asdict(now)}
        time.sleep(0.1)


def _low(samples: Sequence[Usage]) -> Usage:
    def twentieth(values: list[float]) -> float:
        return statistics.quantiles(values, n=20)[0]

    return Usage(
        twentieth([sample.memory_mb for sample in samples]),
        twentieth([sample.threads for sample in samples]),
        twentieth([sample.open_files for sample in samples]),
    )
