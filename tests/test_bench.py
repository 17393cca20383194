"""Measuring backends: what is timed, in which order, in which process, and what follows from it."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import TIMEOUT
from stages import at_once
from tiny import HAS_LLAMA_CPP, HAS_ONNX, run, write_tiny_onnx

from smolcls import BackendError, BackendTimeoutError, ConfigError, InputError
from smolcls.bench import process
from smolcls.bench.busy import busy
from smolcls.bench.imports import ImportClock
from smolcls.bench.job import Job
from smolcls.bench.memory import peak_megabytes
from smolcls.bench.run import FORMAT, Plan, bench, spread
from smolcls.bench.timing import alternate, latencies, medians, rate, speed_ratio

TEXTS = ("/help", "what is recursion?", "rename getUser to fetchUser everywhere")
LABELS = ("command", "prompt", "workflow")


def measured(job: Job) -> dict[str, Any]:
    return process.measure(job, lambda share: None, TIMEOUT)


def test_ways_take_turns_and_begin_each_without_the_clock() -> None:
    asked: list[tuple[str, int]] = []

    def way(name: str) -> Callable[[int], None]:
        return lambda number: asked.append((name, number))

    seconds = alternate(3, [way("own"), way("raw")], in_turn=2)
    first = [(name, number) for name in ("own", "raw") for number in (1, 0, 1)]
    assert asked == [*first, *((name, 2) for name in ("own", "own", "raw", "raw"))]
    assert [len(taken) for taken in seconds] == [3, 3]


def test_only_the_call_itself_is_timed() -> None:
    waits = {0: 0.03, 1: 0.0, 2: 0.0}
    [taken] = alternate(3, [lambda number: time.sleep(waits[number])], in_turn=3)
    assert taken[0] >= 0.03
    assert taken[0] == max(taken)
    assert rate(3, taken) == pytest.approx(3 / sum(taken))


def test_percentiles_are_calls_by_nearest_rank() -> None:
    milliseconds = [float(number) for number in range(100, 0, -1)]
    assert latencies([value / 1000 for value in milliseconds]) == pytest.approx(
        {"p50_ms": 50.0, "p95_ms": 95.0, "p99_ms": 99.0}
    )
    assert set(latencies([0.5]).values()) == {500.0}


def test_a_share_of_speed_is_the_median_of_pairs() -> None:
    # One disturbed call of either way, and a long one of both, move nothing.
    own, raw = [0.2, 0.2, 9.0, 0.2, 4.0], [0.1, 0.1, 0.1, 7.0, 2.0]
    assert speed_ratio(own, raw) == pytest.approx(0.5)


def test_one_way_alone_needs_no_call_without_the_clock() -> None:
    asked: list[int] = []
    alternate(3, [asked.append], in_turn=2)
    assert asked == [0, 1, 2]


def test_medians_are_each_figures_own() -> None:
    rounds = [{"a": 1.0, "b": None, "c": 9.0}, {"a": 100.0, "b": None, "c": None}, {"a": 2.0, "b": None, "c": 5.0}]
    assert medians(rounds) == {"a": 2.0, "b": None, "c": 7.0}


@pytest.mark.parametrize(("count", "expected"), [(2, "ac"), (3, "abd"), (5, "abcde"), (7, "abcdeab")])
def test_calls_are_spread_over_all_rows(count: int, expected: str) -> None:
    assert "".join(spread(list("abcde"), count)) == expected


def test_imports_are_counted_once_and_by_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "bench_outer.py").write_text("import time\ntime.sleep(0.1)\nimport bench_inner\n")
    (tmp_path / "bench_inner.py").write_text("import time\ntime.sleep(0.1)\n")
    (tmp_path / "bench_third.py").write_text("import time\ntime.sleep(0.1)\n")
    statement = __import__
    began = time.perf_counter()
    with ImportClock() as clock:
        __import__("bench_outer")
        outer = clock.seconds
        time.sleep(0.1)
        importlib.import_module("bench_third")
    ended = time.perf_counter() - began
    assert outer >= 0.2
    assert outer + 0.1 <= clock.seconds <= ended - 0.1
    assert {"bench_outer", "bench_inner", "bench_third"} <= set(sys.modules)
    assert __import__ is statement


def test_the_peak_of_memory_stays_when_memory_is_given_back() -> None:
    if peak_megabytes() is None:
        pytest.skip("this system does not say")
    ended = run(
        """
        from smolcls.bench.memory import peak_megabytes
        held = b"x" * 80_000_000
        del held
        print(peak_megabytes())
        """
    )
    assert 80 < float(ended.stdout) < 200


def test_a_backend_is_measured_in_a_process_of_its_own() -> None:
    found = measured(Job("fake:prompt", None, TEXTS, batch_size=2))
    assert found["import_ms"] > 0
    assert found["load_ms"] >= 0
    assert found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]
    assert found["texts_per_second"] > 0
    assert sys.platform == "win32" or found["peak_mb"] > 5
    rates = {name for name in found if "tokens_per_second" in name or name.endswith("of_raw")}
    assert len(rates) == 6
    assert all(found[name] is None for name in rates)


def test_a_backend_answers_each_text_and_says_which_model_it_is() -> None:
    shares: list[float] = []
    found = process.measure(Job("linear", None, TEXTS), shares.append, TIMEOUT)
    assert found["labels"] == ["command", "prompt", "workflow"]
    assert found["model"]["file"].endswith("model.safetensors")
    assert found["model"]["bytes"] > 100_000
    assert len(found["model"]["fingerprint"]) == 16
    assert shares == pytest.approx([1 / 3, 2 / 3, 1.0])


@pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs the extra llamacpp")
def test_tokens_are_compared_with_the_runtime_alone(tiny: Path) -> None:
    found = measured(Job(f"llamacpp:{tiny}", None, TEXTS, batch_size=3))
    for kind in ("call", "batch"):
        assert found[f"{kind}_tokens_per_second"] > 0
        assert found[f"{kind}_raw_tokens_per_second"] > 0
        assert found[f"{kind}_of_raw"] > 0


@pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs the extra llamacpp")
def test_a_model_is_described_without_a_second_load(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = """
import sys
from smolcls import native
library = native.llama()
loads = iter([library.llama_model_load_from_file])
library.llama_model_load_from_file = lambda *arguments: next(loads)(*arguments)
from smolcls.bench.worker import main
main(sys.argv[1], 0.0)
"""
    monkeypatch.setattr(process, "_WORKER", once)
    assert "F16" in measured(Job(f"llamacpp:{tiny}", None, TEXTS[:1]))["model"]["description"]


@pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx")
def test_an_onnx_model_is_measured_and_described(tmp_path: Path) -> None:
    backend = f"onnx:{write_tiny_onnx(tmp_path / 'tiny.onnx')}"
    assert "INT8" in measured(Job(backend, None, TEXTS))["model"]["description"]
    found = measured(Job(backend, None, TEXTS, batch_size=3))
    for kind in ("call", "batch"):
        assert found[f"{kind}_tokens_per_second"] > 0
        assert found[f"{kind}_of_raw"] is None


def test_a_chain_is_measured_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(Job("chain:fake:workflow", None, TEXTS))["labels"] == ["workflow"] * 3
    monkeypatch.setenv("SMOLCLS_CHAIN", "fake:command")
    assert measured(Job("chain", None, TEXTS))["labels"] == ["command"] * 3


def test_what_a_library_prints_does_not_get_into_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = """
import os, sys
from smolcls.backends.fake import FakeClassifier
quiet = FakeClassifier.score_batch
def loud(self, texts):
    os.write(1, b"{\\n")
    print("loading", flush=True)
    return quiet(self, texts)
FakeClassifier.score_batch = loud
from smolcls.bench.worker import main
main(sys.argv[1], 0.0)
"""
    monkeypatch.setattr(process, "_WORKER", noise)
    assert measured(Job("fake:prompt", None, TEXTS))["labels"] == ["prompt"] * 3


@pytest.mark.parametrize(
    ("code", "message"),
    [

        ("import sys; sys.exit('no such device')", "ended with code 1 and no answer: no such device. See whether"),
        ("import os; os.abort()", "and no answer: it said nothing. .* alone: smolcls classify --backend fake"),
    ],
)  # fmt: skip
def test_a_process_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch, code: str, message: str) -> None:
    monkeypatch.setattr(process, "_WORKER", code)
    with pytest.raises(BackendError, match=message):
        measured(Job("fake", None, TEXTS))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_process_that_hangs_is_killed_with_its_children(hanging_backends: None) -> None:
    places = ("import", "load", "call")
    messages = [""] * len(places)

    def work(number: int) -> None:
        with pytest.raises(BackendTimeoutError) as caught:
            process.measure(Job(f"hangs-in-{places[number]}", None, TEXTS), lambda share: None, 5.0)
        messages[number] = str(caught.value)

    at_once(len(places), work)
    assert messages == [
        f"Its process had not ended after 5 s and was killed, 0% of its work done: stuck in {place}. Where it is slow "
        "and does not hang, raise the limit with --timeout. See whether the backend works alone: smolcls classify "
        f"--backend hangs-in-{place} hello"
        for place in places
    ]


@pytest.mark.parametrize(
    "code",
    ["print('{\"done', end='', flush=True); time.sleep(600)", "os.close(1); time.sleep(600)"],
    ids=["within-a-message", "after-its-last-message"],
)
def test_a_process_is_killed_wherever_it_hangs(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(process, "_WORKER", f"import os, time; {code}")
    with pytest.raises(BackendTimeoutError, match=r"after 0\.5 s and was killed, 0% of its work done: it said nothing"):
        process.measure(Job("fake", None, TEXTS), lambda share: None, 0.5)


def test_busy_processes_spin_in_the_block_and_are_gone_after_it() -> None:
    started = []

    def interrupted() -> None:
        with busy(2) as processes:
            started.extend(processes)
            assert [item.poll() for item in processes] == [None, None]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(started) == 2
    assert all(item.returncode is not None for item in started)


def test_a_backend_that_fails_leaves_the_others_alone() -> None:
    told: list[tuple[int, int, str]] = []
    plan = Plan(("nobody", "fake:prompt", "fake:prompt"), rounds=2, calls=4, batch_size=2, busy=1)
    found = bench(plan, TEXTS, LABELS, lambda *item: told.append(item))
    broken, fake = found.backends
    assert broken.failure is not None
    assert broken.failure.startswith("No backend 'nobody'; installed are: ")
    assert fake.failure is None
    assert fake.accuracy == pytest.approx(1 / 3)
    assert {condition: len(rounds) for condition, rounds in fake.rounds.items()} == {"idle": 2, "busy": 2}
    lower, upper = sorted(float(item["p50_ms"] or 0) for item in fake.rounds["idle"])
    assert fake.medians("idle")["p50_ms"] == pytest.approx((lower + upper) / 2)
    assert told[0] == (0, 100, "nobody")
    assert told[-1] == (100, 100, "fake:prompt, round 2, busy")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    content = found.to_dict()
    assert content["format"] == FORMAT
    assert content["conditions"]["rounds"] == 2
    assert content["conditions"]["versions"]["smolcls"]
    assert content["backends"]["nobody"] == {"failure": broken.failure}
    assert set(content["backends"]["fake:prompt"]) == {"model", "accuracy", "idle", "busy", "rounds"}


def test_without_labels_nothing_is_right_or_wrong() -> None:
    [fake] = bench(Plan(("fake",), rounds=1, calls=2), TEXTS).backends
    assert fake.accuracy is None
    assert list(fake.rounds) == ["idle"]


def _wrong() -> Iterator[tuple[Callable[[], object], type[Exception], str]]:
    yield lambda: Plan(()), ConfigError, "Expected the name of a backend to measure"
    yield lambda: Plan(("fake",), rounds=0), ConfigError, "rounds must be a whole number of at least 1; found 0"
    yield lambda: Plan(("fake",), timeout=0), ConfigError, "timeout must be a whole number of at least 1; found 0"
    yield lambda: Plan(("fake",), busy=-1), ConfigError, "busy must be a whole number of at least 0; found -1"
    plan = Plan(("fake",))
    yield lambda: bench(plan, []), InputError, "Expected texts to measure on; found none"
    yield lambda: bench(plan, ["a", " "]), InputError, "Text 2 of 2: The text to classify is empty"
    yield lambda: bench(plan, ["a"], []), InputError, "Expected one label a text; found 1 texts and 0 labels"
    yield lambda: bench(plan, ["a"], ["spam"]), InputError, "Row 1: expected one of the labels .*; found 'spam'"
    yield lambda: bench(Plan(("fake",), "nothing"), ["a"]), ConfigError, "No task 'nothing'"


@pytest.mark.parametrize(("call", "kind", "message"), list(_wrong()))
def test_what_cannot_be_measured_is_said_before_the_work(
    call: Callable[[], object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        call()
