"""The llama.cpp backend: exact label scores, batches, threads, and a cache that does not fill."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from contract import write_tiny_folder, write_tiny_gguf
from tiny import (
    BUNDLED,
    FORCED,
    HAS_LLAMA_CPP,
    SPREAD,
    check_closing,
    fitted,
    label_log_probabilities,
    tiny_classifier,
)

import smolcls
from smolcls import BackendError, Task, prompt

if not HAS_LLAMA_CPP:
    pytest.skip("needs the extra llamacpp", allow_module_level=True)

from smolcls.backends.llamacpp import LlamaCppClassifier


@pytest.fixture(scope="module")
def bundled() -> Iterator[LlamaCppClassifier]:
    with LlamaCppClassifier() as classifier:
        yield classifier


def full_decode_probabilities(classifier: LlamaCppClassifier, text: str) -> list[float]:
    """Label probabilities by decoding frame, text and label anew for every token: no sharing, no batch, no trie."""
    engine, task = classifier._engine, classifier.task
    rendered = prompt.render(task, text)
    start = (
        engine._tokenize(rendered.prefix, special=True)
        + engine._tokenize(rendered.text)
        + engine._tokenize(rendered.suffix, special=True)
    )
    (end,) = engine._tokenize(prompt.END_OF_TURN, special=True)
    labels = [[*engine._tokenize(name), end] for name in task.names]
    rows: dict[tuple[int, ...], Any] = {}

    def logits(before: tuple[int, ...], candidates: list[int]) -> list[float]:
        if before not in rows:
            rows[before] = decode_alone(engine, [*start, *before])
        return [float(rows[before][item]) for item in candidates]

    return [math.exp(value) for value in label_log_probabilities(labels, logits)]


def decode_alone(engine: Any, tokens: list[int]) -> Any:
    """The logits after a sequence, in a context of its own."""
    lib = engine._lib
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = len(tokens) + 8
    parameters.n_threads = parameters.n_threads_batch = 1
    context = lib.llama_init_from_model(engine._model, parameters)
    try:
        array = (lib.llama_token * len(tokens))(*tokens)
        assert lib.llama_decode(context, lib.llama_batch_get_one(array, len(tokens))) == 0
        pointer = lib.llama_get_logits_ith(context, -1)
        return engine._np.ctypeslib.as_array(pointer, shape=(engine._vocabulary,)).copy()
    finally:
        lib.llama_free(context)


@pytest.mark.parametrize("task", [None, SPREAD, FORCED], ids=["one-token", "spread", "forced-start"])
def test_scores_are_those_of_full_decodes(tiny: Path, task: Task | None) -> None:
    with tiny_classifier(tiny, task=task) as classifier:
        for text in ("hi", "my card was stolen in Rome, what now?", "ß" * 60):
            expected = full_decode_probabilities(classifier, text)
            assert math.fsum(expected) == pytest.approx(1.0)
            found = list(classifier.classify(text).probabilities.values())
            assert found == pytest.approx(expected, abs=5e-3)


def test_a_batch_of_64_has_the_labels_of_64_single_calls(tiny: Path) -> None:
    words = ("/help", "fix", "the", "login", "page", "what", "is", "café", "42", "deploy", "?", "\N{PILE OF POO}")
    generator = random.Random(1)
    texts = [" ".join(generator.choices(words, k=generator.randrange(1, 30))) for _ in range(64)]
    for task in (None, SPREAD, FORCED):
        with tiny_classifier(tiny, task=task) as classifier:
            batch = classifier.classify_batch(texts)
            for text, together in zip(texts, batch, strict=True):
                alone = classifier.classify(text)
                # A random model may be undecided; then the order of two labels means nothing.
                first, second, *_ = sorted(alone.probabilities.values(), reverse=True)
                if first - second > 0.02:
                    assert together.label == alone.label
                for name, value in together.probabilities.items():
                    assert value == pytest.approx(alone.probabilities[name], abs=0.01)


def test_many_texts_with_a_forced_start_fit_into_the_batch(tiny: Path) -> None:
    """Each text of a decode is followed by the labels' common tokens: 32 texts at the bound of the batch."""
    task = Task(["a" * 40 + "b", "a" * 40 + "c"], max_text_bytes=64)
    with tiny_classifier(tiny, task=task) as classifier:
        engine = classifier._engine
        tail = len(engine._suffix)
        # As many tokens a text as fill the batch with 32 texts, were the common tokens not counted.
        size = engine._capacity // 32 - tail
        predictions = classifier.classify_batch(["x" * max(1, size)] * 100)
        assert {item.label for item in predictions} == {predictions[0].label}
        groups = [sum(map(len, group)) + 40 * len(group) for group in engine._groups([tuple(range(20))] * 100)]
        assert max(groups) <= engine._capacity


def test_a_text_of_one_token_a_byte_fits_at_every_limit(tiny: Path) -> None:
    for limit in (64, 500, 3000):
        with tiny_classifier(tiny, task=Task(["a", "b"], max_text_bytes=limit)) as classifier:
            prediction = classifier.classify("\N{PILE OF POO}" * 4000)
            assert prediction.truncated
            assert len(classifier.tokenize(prompt.render(classifier.task, "é" * limit).text)) > limit - 10


def test_more_branches_than_sequences_are_walked_in_waves(tiny: Path) -> None:
    task = Task([f"{first}{second}" for first in "abcdefghijklmnopqrst" for second in "uvwxyz"], max_text_bytes=64)
    with tiny_classifier(tiny, task=task) as classifier:
        assert len(classifier._engine._trie.branches) == 21
        (alone,) = classifier.classify_batch(["hi"])
        for prediction in classifier.classify_batch(["hi"] * 40):
            assert list(prediction.probabilities.values()) == pytest.approx(
                list(alone.probabilities.values()), abs=5e-3
            )


def test_threads_may_share_one_classifier(tiny: Path) -> None:
    """16 threads of 200 calls, single and in batches, get what one thread gets."""
    texts = ["hi", "/x", "go", "a b", "why"]
    with tiny_classifier(tiny) as classifier:
        expected = {text: list(classifier.classify(text).probabilities.values()) for text in texts}
        wrong: list[object] = []

        def work(seed: int) -> None:
            generator = random.Random(seed)
            for number in range(200):
                asked = generator.choices(texts, k=3 if number % 10 == 0 else 1)
                try:
                    found = classifier.classify_batch(asked)
                except smolcls.SmolclsError as error:
                    wrong.append(error)
                    return
                for text, prediction in zip(asked, found, strict=True):
                    if list(prediction.probabilities.values()) != pytest.approx(expected[text], abs=5e-3):
                        wrong.append((text, prediction))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_a_batch_waits_for_other_threads_once_before_its_decode(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiny_classifier(tiny) as classifier:
        lock = MagicMock()
        monkeypatch.setattr(classifier._engine, "_lock", lock)
        classifier.classify_batch(["hi"] * 8)
        assert lock.__enter__.call_count == 2


def test_closing_while_others_classify_is_an_error_of_theirs(tiny: Path) -> None:
    check_closing(tiny_classifier(tiny))


def cells(classifier: LlamaCppClassifier) -> list[int]:
    """The last position that the cache holds of each sequence; -1 where it holds none."""
    engine = classifier._engine
    return [engine._lib.llama_memory_seq_pos_max(engine._memory, number) for number in range(engine._sequences)]


def test_the_cache_holds_the_prefix_alone_after_any_number_of_batches(tiny: Path) -> None:
    with tiny_classifier(tiny, task=SPREAD) as classifier:
        before = cells(classifier)
        assert before == [len(classifier._engine._prefix) - 1] + [-1] * 255
        first = classifier.classify("hi")
        for number in range(300):
            classifier.classify_batch(["hi", "x" * (number % 150 + 1), "y"][: number % 3 + 1])
        assert cells(classifier) == before
        assert classifier.classify("hi").probabilities == first.probabilities


@pytest.mark.parametrize("failing", [1, 2, 3], ids=["at-the-root", "at-a-branch", "at-a-later-wave"])
@pytest.mark.parametrize("code", [1, -3])
def test_a_failed_decode_is_an_error_and_leaves_nothing_behind(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, failing: int, code: int
) -> None:
    with tiny_classifier(tiny, task=SPREAD) as classifier:
        texts = ["x" * 10] * 32
        expected, before = classifier.classify("hi").probabilities, cells(classifier)
        decode, calls = classifier._engine._lib.llama_decode, 0

        def fail(context: object, batch: object) -> int:
            nonlocal calls
            calls += 1
            return code if calls == failing else int(decode(context, batch))

        monkeypatch.setattr(classifier._engine._lib, "llama_decode", fail)
        with pytest.raises(BackendError, match=rf"llama\.cpp could not decode \d+ tokens \(code {code}\)"):
            classifier.classify_batch(texts)
        monkeypatch.undo()
        assert cells(classifier) == before
        assert classifier.classify("hi").probabilities == expected


def test_logits_that_are_no_numbers_are_an_error(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiny_classifier(tiny) as classifier:
        size = classifier._engine._vocabulary
        row = (ctypes.c_float * size)(*[math.nan] * size)
        monkeypatch.setattr(
            classifier._engine._lib, "llama_get_logits_ith", lambda *_: ctypes.cast(row, ctypes.POINTER(ctypes.c_float))
        )
        with pytest.raises(BackendError, match="logits that are not numbers; the model file may be damaged"):
            classifier.classify("hi")
        monkeypatch.setattr(classifier._engine._lib, "llama_get_logits_ith", lambda *_: None)
        with pytest.raises(BackendError, match=r"llama\.cpp gave no logits for a decoded token"):
            classifier.classify("hi")


def test_transformers_reads_the_same_logits(tmp_path: Path) -> None:
    """Promise 2 on the tiny model: two libraries, one prompt, one set of probabilities."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        pytest.skip("needs the extra transformers")
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    folder = write_tiny_folder(tmp_path / "folder")
    texts = ["hi", "rename getUser to fetchUser everywhere", "café 42", "x" * 2000]
    for task in (None, SPREAD, FORCED):
        with tiny_classifier(path, task=task) as one, smolcls.load(f"transformers:{folder}", task=task) as other:
            for text in texts:
                mine, theirs = one.classify(text), other.classify(text)
                assert list(mine.probabilities.values()) == pytest.approx(list(theirs.probabilities.values()), abs=0.02)
                assert one.tokenize(text) == other.tokenize(text)  # type: ignore[attr-defined]


@BUNDLED
@pytest.mark.model
def test_the_shipped_labels_are_one_token_each(bundled: LlamaCppClassifier) -> None:
    assert [bundled.tokenize(name) for name in bundled.task.names] == [[9151], [41253], [41236]]
    assert bundled.tokenize("<|im_end|>") != bundled._engine._tokenize("<|im_end|>", special=True) == [2]


@BUNDLED
@pytest.mark.model
def test_the_shipped_prompt_is_read_as_its_parts(bundled: LlamaCppClassifier) -> None:
    for text in ("/help", "3.14 files", "'s", "ünï", "a\n\nb", "😀", "<|im_end|>"):
        rendered = prompt.render(bundled.task, text)
        engine = bundled._engine
        parts = [*engine._prefix, *engine._tokenize(rendered.text), *engine._suffix]
        assert engine._tokenize(str(rendered), special=True) == parts


@BUNDLED
@pytest.mark.model
def test_the_shipped_model_scores_as_full_decodes_do(bundled: LlamaCppClassifier) -> None:
    expected = full_decode_probabilities(bundled, "fix the login bug")
    with LlamaCppClassifier(bundled.model_path, calibration=fitted(bundled.task, "llamacpp", 1.0)) as raw:
        found = raw.classify("fix the login bug")
    assert list(found.probabilities.values()) == pytest.approx(expected, abs=0.06)
    assert found.label_mass is not None
    assert 0.0 < found.label_mass <= 1.0
