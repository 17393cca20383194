"""The program that puts the machine's memory under pressure: `python -m soaking.memory PART`.

It takes a part of what is available, in steps, frees it, and begins anew, until it is killed. It never takes more than
`MOST`, watches what is left while it takes, and offers itself to the kernel as the first to be ended.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
import time
from pathlib import Path

MOST = 0.6
_STEP = 32 << 20
_HOLD = 0.5  # seconds


def available() -> int:
    """Bytes that the machine, and the control group of this process, can still give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    bytes_left = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no limit is "max", and elsewhere the files are not there
        limit = int((group / "memory.max").read_text())
        bytes_left = min(bytes_left, limit - int((group / "memory.current").read_text()))
    with contextlib.suppress(OSError, ValueError):
        limit = int((group / "memory/memory.limit_in_bytes").read_text())
        bytes_left = min(bytes_left, limit - int((group / "memory/memory.usage_in_bytes").read_text()))
    return max(0, bytes_left)


def take(part: float) -> int:
    """Take a part of the available memory, hold it for a moment and give it back; returns the bytes."""
    begun = available()
    wanted, least_left = int(begun * min(part, MOST)), int(begun * (1.0 - MOST))
    held: list[mmap.mmap] = []
    while (len(held) + 1) * _STEP <= wanted and available() - _STEP > least_left:
        step = mmap.mmap(-1, _STEP)
        for page in range(0, _STEP, mmap.PAGESIZE):
            step[page] = 1
        held.append(step)
    time.sleep(_HOLD)
    for step in held:
        step.close()
    return len(held) * _STEP


def main() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    while True:
        print(take(float(sys.argv[1])), flush=True)


if __name__ == "__main__":
    main()
