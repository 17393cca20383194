"""Half an hour of mixed traffic through a chain whose server, model file, disk and memory fail and come back.

    python benchmarks/soak.py                                   # the embedded model, 32 threads, 30 minutes
    python benchmarks/soak.py --seconds 60 --chain cheap        # a tiny model and a local server

Each answer is compared with what the same stage says when one thread asks it; no call may be lost, and nothing may
grow. The Ollama server is the one that scripts/serve_ollama.py built, else a local one that speaks its interface; the
report says which. It needs Linux and the extra `dev`. The exit code is 1 where a check fails.

Memory is judged with the C library's threshold for mappings of their own held at 128 KiB. Left to itself glibc raises
it with the first model that is freed; later models then lie in its heaps, which give back whole free pages alone, so
that a process in which models come and go holds more and more that is free (mallopt(3), M_MMAP_THRESHOLD).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from soaking.memory import MOST
from soaking.run import Plan, run

from smolcls.files import write_text

THRESHOLD = "MALLOC_MMAP_THRESHOLD_"


def summary(report: dict[str, Any]) -> str:
    """What a person wants to know."""
    counts = report["counts"]
    seen: dict[str, int] = {}
    for item in report["faults"]:
        seen[item["fault"]] = seen.get(item["fault"], 0) + 1
    lines = [
        f"{counts['texts']} texts in {counts['calls ended']} calls; {counts.get('calls refused', 0)} refused, "
        f"{counts.get('calls made again', 0)} made again because they came to a closed router",
        f"server: {report['server']}",
        "faults: " + ", ".join(f"{count} x {name}" for name, count in seen.items()),
        f"texts that a batch turned at even odds: {len(report['turned at even odds'])}",
    ]
    for name, check in report["checks"].items():
        lines.append(f"{'ok    ' if check['passed'] else 'FAILED'} {name}")
        if not check["passed"]:
            lines.append(f"       {json.dumps(check['found'])[:1000]}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--chain", choices=("embedded", "cheap"), default="embedded")
    parser.add_argument("--texts", help="a JSONL file of texts and labels; else the package's own test rows")
    parser.add_argument("--limit", type=int, default=200, help="how many of them")
    parser.add_argument("--memory", type=float, default=0.5, help=f"part of the available memory, {MOST} at most")
    parser.add_argument("--report", type=Path, default=Path("soak.json"), help="where the JSON report is written")
    given = vars(parser.parse_args())
    if THRESHOLD not in os.environ:  # the C library reads it at the start of a process
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {THRESHOLD: "131072"})
    path = given.pop("report")
    report = run(Plan(**given))
    write_text(path, json.dumps(report, indent=2) + "\n")
    print(summary(report))
    print(f"report: {path}")
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
