"""The soak itself: rules, Ollama, a local model, rules; the threads, the faults in turn, and the report."""

from __future__ import annotations

import itertools
import os
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from contract import write_tiny_folder

import smolcls
from smolcls import ConfidenceRouter, Stage, build
from smolcls.data.rows import read_rows
from soaking import faults, measure, servers
from soaking.traffic import HOSTILE, Chain, Reference, Tally, ask_on

_PATIENCE = 60.0  # seconds for what comes back by itself, on a busy machine


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        seconds: how long the threads ask; the round of faults that is under way is ended.
        threads: how many ask.
        chain: `embedded` for the real model, `cheap` for a tiny one of random weights and a local server.
        texts: a JSONL file of texts; None takes the package's own test rows.
        limit: how many of them.
        memory: the part of the available memory that is taken and freed, 0.6 at most.
    """

    seconds: float = 1800.0
    threads: int = 32
    chain: str = "embedded"
    texts: str | None = None
    limit: int = 200
    memory: float = 0.5

    @property
    def spell(self) -> float:
        """Seconds that a fault lasts, and the quiet after it."""
        return min(10.0, max(0.75, self.seconds / 60))


def run(plan: Plan) -> dict[str, Any]:
    """Run it; the report is JSON-ready, and its `passed` says whether every check held."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="smolcls-soak-")))
        _own_cache(stack, work / "cache")
        recipe = _recipe(plan.chain, work)
        built = build.build(**recipe)
        # The server has the GGUF, and this process what answers faster, where that is the real model.
        local = built.model if plan.chain == "cheap" else build.build(format=build.ONNX).model
        server = servers.started(plan.chain, built.modelfile)
        stack.callback(server.close)
        texts = _texts(plan)
        reference = _reference(plan, local, server, texts)
        tally = Tally(reference)
        before = measure.Usage.now()
        chain = Chain(lambda: _router(plan, local, server))
        troubles: list[faults.Fault] = [
            faults.ServerKilled(server, tally),
            faults.ModelMoved(local, chain, tally),
            faults.CacheFull(built.model, recipe),
            faults.MemoryPressure(plan.memory),
        ]
        sampler = measure.Sampler()
        sampler.start()
        hanging, rounds = _traffic(plan, chain, texts, tally, troubles)
        sampler.stop()
        chain.router.close()
        checks = _checks(tally, hanging, rounds, sampler.samples, before)
        return _report(plan, server, tally, rounds, checks)


def _own_cache(stack: ExitStack, folder: Path) -> None:
    """A cache of its own, for its model is moved about; the one before is named again at the end."""
    before = os.environ.get("SMOLCLS_CACHE")
    os.environ["SMOLCLS_CACHE"] = str(folder)

    def restore() -> None:
        os.environ.pop("SMOLCLS_CACHE")
        if before is not None:
            os.environ["SMOLCLS_CACHE"] = before

    stack.callback(restore)


def _recipe(chain: str, work: Path) -> dict[str, Any]:
    if chain == "embedded":
        return {"base": "bundled", "quantisation": "Q8_0"}
    return {"base": str(write_tiny_folder(work / "tiny")), "quantisation": "F16"}


def _texts(plan: Plan) -> list[str]:
    path = plan.texts or str(files("smolcls") / "data" / "three_type" / "test.jsonl")
    rows = sorted({row.text for row in read_rows(path)})
    return [*random.Random(7).sample(rows, min(plan.limit, len(rows))), *HOSTILE]


def _router(plan: Plan, model: Path, server: servers.ModelServer) -> ConfidenceRouter:
    cheap = plan.chain == "cheap"
    patience, cooldown = (2.0, 0.5) if cheap else (10.0, 2.0)
    return ConfidenceRouter(
        [
            Stage("rules", accept={"command": 0.99}),
            Stage(
                f"ollama:{server.model}",
                threshold=0.8,
                timeout=patience,
                cooldown=cooldown,
                options={"host": server.address, "timeout": patience},
                name="ollama",
            ),
            Stage(
                _specification(plan, model),
                threshold=0.8,
                cooldown=cooldown,
                options={"threads": 1} if cheap else {},
                name="local",
            ),
            Stage("rules", name="last rules"),
        ]
    )


def _specification(plan: Plan, model: Path) -> str:
    return f"{'llamacpp' if plan.chain == 'cheap' else 'onnx'}:{model}"


def _reference(plan: Plan, model: Path, server: servers.ModelServer, texts: Sequence[str]) -> Reference:
    """The same stages' classifiers, asked by this thread alone."""
    # As the tests of the tiny model in F16 have it; ONNX Runtime gives each text the same, whatever is asked beside it.
    tolerances = {"rules": 0.0, "last rules": 0.0, "local": 5e-3 if plan.chain == "cheap" else 1e-5}
    # The server puts texts together, as the tests of the embedded model have it.
    tolerances["ollama"] = 0.0 if isinstance(server, servers.LocalServer) else 0.08
    options: dict[str, Any] = {"threads": 1} if plan.chain == "cheap" else {}
    with (
        smolcls.load("rules") as rules,
        smolcls.load(f"ollama:{server.model}", host=server.address, timeout=120.0) as remote,
        smolcls.load(_specification(plan, model), **options) as local,
    ):
        classifiers = {"rules": rules, "last rules": rules, "ollama": remote, "local": local}
        return Reference(classifiers, tolerances, texts)


def _traffic(
    plan: Plan, chain: Chain, texts: Sequence[str], tally: Tally, troubles: Sequence[faults.Fault]
) -> tuple[int, list[dict[str, Any]]]:
    """Ask from all threads while the faults come in turn; returns how many threads hang, and what the faults did."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=ask_on, args=(chain, texts, tally, stop, seed), name=f"soak-{seed}", daemon=True)
        for seed in range(plan.threads)
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + plan.seconds
    rounds: list[dict[str, Any]] = []
    try:
        time.sleep(plan.spell)
        for fault in itertools.cycle(troubles):
            if time.monotonic() > end and len(rounds) >= len(troubles):
                break
            rounds.append(_suffer(fault, tally, plan.spell))
    finally:
        stop.set()
        until = time.monotonic() + _PATIENCE
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
    return sum(thread.is_alive() for thread in threads), rounds


def _suffer(fault: faults.Fault, tally: Tally, spell: float) -> dict[str, Any]:
    """One fault from its beginning until the stage that it hit answers again."""
    asked, begun = tally.counts["texts"], time.monotonic()
    fault.begin()
    try:
        time.sleep(spell)
        # On a busy machine all threads may be in calls that began before it.
        while (felt := fault.felt()) is None and time.monotonic() < begun + _PATIENCE:
            time.sleep(0.1)
    finally:
        fault.end()
    lasted, answered = time.monotonic() - begun, tally.counts["texts"] - asked
    mended, proposals = time.monotonic(), tally.proposals[fault.stage]
    while fault.stage and tally.proposals[fault.stage] == proposals and time.monotonic() < mended + _PATIENCE:
        time.sleep(0.02)
    recovered = not fault.stage or tally.proposals[fault.stage] > proposals
    took = round(time.monotonic() - mended, 2) if fault.stage and recovered else None
    time.sleep(spell)
    return {
        "fault": fault.name,
        "felt": felt,
        "seconds": round(lasted, 2),
        "answers meanwhile": answered,
        "recovered": recovered,
        "recovered after": took,
    }


def _checks(
    tally: Tally, hanging: int, rounds: list[dict[str, Any]], samples: list[measure.Usage], before: measure.Usage
) -> dict[str, dict[str, Any]]:
    steady, numbers = measure.growth(samples)
    settled, left = measure.settled(before, _PATIENCE)
    asked = tally.counts["calls begun"]
    return {
        "no call is lost": _check(
            not tally.lost and not hanging and asked == tally.counts["calls ended"] and asked > 0,
            {"lost": dict(tally.lost), "threads that hang": hanging},
        ),
        "labels are those of one thread": _check(
            not tally.wrong and all(tally.proposals[stage] for stage in ("rules", "ollama", "local", "last rules")),
            {"wrong": dict(tally.wrong), "compared": dict(tally.proposals)},
        ),
        "nothing grows": _check(steady, numbers),
        "nothing is left behind": _check(settled, left),
        "every fault was felt": _check(all(item["felt"] for item in rounds), [i for i in rounds if not i["felt"]]),
        "answers go on, and stages come back": _check(
            all(item["answers meanwhile"] and item["recovered"] for item in rounds), [i["recovered"] for i in rounds]
        ),
    }


def _check(passed: bool, found: object) -> dict[str, Any]:
    return {"passed": passed, "found": found}


def _report(
    plan: Plan, server: servers.ModelServer, tally: Tally, rounds: list[dict[str, Any]], checks: dict[str, Any]
) -> dict[str, Any]:
    outcomes: dict[str, dict[str, int]] = {}
    for (stage, outcome), count in sorted(tally.outcomes.items()):
        outcomes.setdefault(stage, {})[outcome] = count
    turned = [
        {"stage": stage, "text": text[:80], "times": times} for (stage, text), times in sorted(tally.turned.items())
    ]
    return {
        "passed": all(check["passed"] for check in checks.values()),
        "plan": asdict(plan),
        "server": server.kind,
        "counts": dict(tally.counts),
        "outcomes": outcomes,
        "checks": checks,
        "turned at even odds": turned,
        "furthest from one thread's confidence": {stage: round(far, 6) for stage, far in tally.furthest.items()},
        "faults": rounds,
    }
