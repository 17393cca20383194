"""The cheap form of the soak, once: a tiny model, a local server, and every fault in turn."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("ollama")

from tiny import HAS_LLAMA_CPP, run

pytestmark = [
    pytest.mark.soak,
    pytest.mark.usefixtures("no_proxies"),
    pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs the extra llamacpp"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def test_a_failing_chain_answers_every_call_as_one_thread_would() -> None:
    """In a process of its own: its threads, open files and memory are counted."""
    ended = run(
        """
        import json, sys
        sys.path.insert(0, sys.argv[1])
        from soaking.run import Plan, run
        print(json.dumps(run(Plan(seconds=20, threads=32, chain="cheap", limit=60, memory=0.02))))
        """,
        Path(__file__).parent,
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    failed = {name: check["found"] for name, check in report["checks"].items() if not check["passed"]}
    assert failed == {}
    assert {item["fault"] for item in report["faults"]} == {
        "server killed",
        "model file moved away",
        "cache cannot be written (RLIMIT_FSIZE)",
        "memory under pressure",
    }
