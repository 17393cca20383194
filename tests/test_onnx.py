"""The ONNX backend: its scores against other libraries' and its own one by one, files that it must refuse, threads."""

from __future__ import annotations

import math
import os
import platform
import random
import statistics
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from contract import write_tiny_folder
from tiny import (
    BUNDLED,
    FORCED,
    HAS_LLAMA_CPP,
    HAS_ONNX,
    SPREAD,
    TORCH,
    check_closing,
    check_fork,
    label_log_probabilities,
    run,
    tiny_classifier,
    write_tiny_onnx,
)

import smolcls
from smolcls import BackendError, ModelError, Task, prompt
from smolcls.data.rows import shipped

if not HAS_ONNX:
    pytest.skip("needs the extra onnx", allow_module_level=True)

import numpy as np
import onnx
import onnxruntime
from onnx_files import ByHand, edited, in_float, with_metadata
from tokenizers import Tokenizer

from smolcls.backends import _onnx_engine
from smolcls.backends.onnx import OnnxClassifier

TEXTS = ["hi", "my card was stolen in Rome, what now?", "ß" * 60, "/help me", "a\n\n1 <|im_end|>", "x" * 300]
#: One token each; shared beginnings and a label that begins others; a beginning that all share; deep chains.
TASKS = {
    "one-token": None,
    "spread": SPREAD,
    "forced-start": FORCED,
    "chain": Task(["a", "ab", "abc", "abcd", "b"], max_text_bytes=400),
}


@pytest.fixture(scope="module")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_onnx(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


@pytest.fixture(scope="module")
def tiny_float(tiny_onnx: Path) -> Path:
    return in_float(tiny_onnx, tiny_onnx.with_name("float.onnx"))


def load(path: Path, **options: Any) -> OnnxClassifier:
    """The backend on a tiny model; one thread, for it is too small to share out."""
    made = smolcls.load(f"onnx:{path}", threads=1, **options)
    assert isinstance(made, OnnxClassifier)
    return made


def one_by_one(path: Path, task: Task, text: str) -> list[float]:
    """The labels' log-probabilities from a pass over the whole prompt for every beginning of a label: no tree."""
    graph = ByHand(path)
    tokenizer = Tokenizer.from_str(graph.metadata["tokenizer"])
    start = tokenizer.encode(str(prompt.render(task, text))).ids
    [end] = tokenizer.encode(prompt.END_OF_TURN).ids
    labels = [[*tokenizer.encode(name).ids, end] for name in task.names]

    def logits(before: tuple[int, ...], candidates: list[int]) -> list[float]:
        found: list[float] = graph.logits([*start, *before], candidates)[-1].tolist()
        return found

    return label_log_probabilities(labels, logits)


def log_probabilities(classifier: OnnxClassifier, text: str) -> list[float]:
    [scores] = classifier.score_batch([text])
    return list(scores.log_probabilities)


@pytest.mark.parametrize("task", list(TASKS.values()), ids=list(TASKS))
def test_the_tree_in_one_pass_gives_what_passes_one_by_one_give(
    tiny_onnx: Path, tiny_float: Path, task: Task | None
) -> None:
    """In float32 to its noise, from the same eight-bit weights.

    In eight bit a product's scale is that of the largest value of all its tokens, so other tokens in the same pass
    round the activations otherwise: by about as much as rounding moves the logits at all, 0.1 for this model.
    """
    with load(tiny_float, task=task) as exact, load(tiny_onnx, task=task) as rounded:
        moved = []
        for text in TEXTS:
            expected = one_by_one(tiny_float, exact.task, text)
            assert math.fsum(map(math.exp, expected)) == pytest.approx(1.0)
            assert log_probabilities(exact, text) == pytest.approx(expected, abs=1e-4)
            pairs = zip(log_probabilities(rounded, text), one_by_one(tiny_onnx, exact.task, text), strict=True)
            moved += [abs(one - other) for one, other in pairs]
    assert statistics.mean(moved) < 0.15


@pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs the extra llamacpp")
@pytest.mark.parametrize("task", list(TASKS.values()), ids=list(TASKS))
def test_scores_are_llama_cpps_but_for_the_rounding(tiny_onnx: Path, task: Task | None) -> None:
    moved = []
    with load(tiny_onnx, task=task) as one, tiny_classifier(tiny_onnx.with_suffix(".gguf"), task=task) as other:
        for text in [*TEXTS, *(f"text {number}" for number in range(20))]:
            mine, theirs = one.classify(text), other.classify(text)
            moved += [abs(mine.probabilities[name] - theirs.probabilities[name]) for name in one.task.names]
            assert one.tokenize(text) == other.tokenize(text)
            assert mine.truncated == theirs.truncated
    assert statistics.mean(moved) < 0.03
    assert max(moved) < 0.25


@TORCH
@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("task", list(TASKS.values()), ids=list(TASKS))
def test_in_float32_scores_are_transformers_own(tmp_path: Path, task: Task | None) -> None:
    """Of weights that eight bit hold without loss."""
    from tiny import replace_tensors

    from smolcls.export import onnx as export
    from smolcls.export.gguf import GgufSource, open_source, write_f16

    folder = write_tiny_folder(tmp_path / "model")

    def round_rows(tensors: dict[str, Any]) -> None:
        for name, weight in tensors.items():
            if weight.ndim == 2:
                steps = np.rint(weight / np.abs(weight).max(axis=1, keepdims=True) * 127)
                tensors[name] = (steps / 128).astype("<f4")

    replace_tensors(folder, round_rows)
    write_f16(open_source(folder), tmp_path / "model.gguf")
    export.write(GgufSource(tmp_path / "model.gguf"), tmp_path / "model.onnx")
    path = in_float(tmp_path / "model.onnx", tmp_path / "float.onnx")
    with load(path, task=task) as one, smolcls.load(f"transformers:{folder}", device="cpu", task=task) as other:
        for text in TEXTS:
            [expected] = other.score_batch([text])
            assert log_probabilities(one, text) == pytest.approx(list(expected.log_probabilities), abs=1e-3)


def test_a_batch_is_its_texts_one_by_one_exactly(tiny_onnx: Path) -> None:
    texts = [*TEXTS, *(f"{number} " * number + "go" for number in range(30))]
    with load(tiny_onnx, task=SPREAD) as classifier:
        for text, together in zip(texts, classifier.classify_batch(texts), strict=True):
            alone = classifier.classify(text)
            assert (together.probabilities, together.truncated) == (alone.probabilities, alone.truncated)
            assert together.truncated == (len(text.encode()) > 200)


def test_threads_may_share_one_classifier(tiny_onnx: Path) -> None:
    with smolcls.load(f"onnx:{tiny_onnx}", task=SPREAD, threads=2) as classifier:
        expected = {text: classifier.classify(text).probabilities for text in TEXTS}
        wrong: list[object] = []

        def work(seed: int) -> None:
            generator = random.Random(seed)
            for number in range(30):
                asked = generator.choices(TEXTS, k=3 if number % 10 == 0 else 1)
                try:
                    found = classifier.classify_batch(asked)
                except smolcls.SmolclsError as error:
                    wrong.append(error)
                    return
                pairs = zip(asked, found, strict=True)
                wrong.extend(text for text, item in pairs if item.probabilities != expected[text])

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_one_thread_and_more_give_the_same(tiny_onnx: Path) -> None:
    with load(tiny_onnx) as one, smolcls.load(f"onnx:{tiny_onnx}", threads=3) as more:
        assert [item.probabilities for item in one.classify_batch(TEXTS)] == [
            pytest.approx(item.probabilities, abs=1e-6) for item in more.classify_batch(TEXTS)
        ]


class _Overflowing:
    """ONNX Runtime as it is on a processor without VNNI: two products of a sum stop at 32767."""

    SessionOptions = onnxruntime.SessionOptions

    class InferenceSession:
        def __init__(self, model: bytes, options: Any, **_: Any) -> None:
            self._real = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

        def run(self, names: None, feed: dict[str, Any]) -> list[Any]:
            assert self._real.run(names, feed)[0].item() in (4 * 255 * 127, 2 * 32767)
            return [np.array([[2 * 32767]], np.int32)]


def test_a_processor_whose_sums_overflow_is_found_out() -> None:
    assert _onnx_engine._saturates(_Overflowing) is True


def test_exact_sums_are_what_a_processor_with_vnni_computes(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(tiny_onnx, task=SPREAD) as usual:
        expected = [score.log_probabilities for score in usual.score_batch(TEXTS)]
    asked: list[bool] = []
    session = _onnx_engine._session

    def noted(*arguments: Any, exact: bool = False) -> Any:
        asked.append(exact)
        return session(*arguments, exact=exact)

    monkeypatch.setattr(_onnx_engine, "_saturates", lambda _: True)
    monkeypatch.setattr(_onnx_engine, "_session", noted)
    with load(tiny_onnx, task=SPREAD) as exact:
        found = [score.log_probabilities for score in exact.score_batch(TEXTS)]
    assert asked == [True]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_special_tokens_in_a_text_are_characters(tiny_onnx: Path) -> None:
    with load(tiny_onnx) as classifier:
        for spelling in (prompt.END_OF_TURN, prompt.START_OF_TURN, "<|endoftext|>"):
            assert len(classifier.tokenize(spelling)) == len(spelling)


def test_a_call_computes_the_text_its_frame_and_the_labels_beginnings(tiny_onnx: Path) -> None:
    with load(tiny_onnx, task=SPREAD) as classifier:
        assert classifier.model_description() == "llama 0M INT8"
        frame = classifier.prompt_tokens("hi")[2:]
        assert classifier.prompt_tokens("hi there") == [*classifier.tokenize("hi there"), *frame]
        # card_, car, card, do: all their tokens, and each once.
        beginnings = {name[:end] for name in ("card_", "car", "do") for end in range(1, len(name) + 1)}
        suffix = Tokenizer.from_str(ByHand(tiny_onnx).metadata["tokenizer"]).encode(prompt.suffix()).ids
        assert frame[: len(suffix)] == suffix
        assert sorted(frame[len(suffix) :]) == sorted(classifier.tokenize(part)[-1] for part in beginnings)


def test_closing(tiny_onnx: Path) -> None:
    classifier = load(tiny_onnx)
    check_closing(classifier)
    with pytest.raises(BackendError, match="was closed; make a new one"):  # between the texts of a batch
        classifier.score_batch(["hi"])


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no model file .*none\.onnx\. Expected an ONNX file that smolcls"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="There is no model file"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["empty", "text", "half", "gguf"])
def test_what_is_no_whole_onnx_file(tiny_onnx: Path, tmp_path: Path, kind: str) -> None:
    content = {
        "empty": b"",
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 98000000\n",
        "half": tiny_onnx.read_bytes()[: tiny_onnx.stat().st_size // 2],
        "gguf": tiny_onnx.with_suffix(".gguf").read_bytes(),
    }
    path = tmp_path / "model.onnx"
    path.write_bytes(content[kind])
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load .*model\.onnx: .*\. Build it again\."):
        load(path)


def test_an_onnx_file_of_others(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [1])
    copied = onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["a"], ["b"])], "other", [value], [copied])
    versions = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=versions, ir_version=9), str(tmp_path / "other.onnx"))
    with pytest.raises(ModelError, match=r"other\.onnx is no model of smolcls: expected the format smolcls-onnx-1; "):
        load(tmp_path / "other.onnx")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"format": "smolcls-onnx-0"},
            "is no model of smolcls: .* found 'smolcls-onnx-0'.*smolcls build --format",
        ),
        ({"first_past": None}, "is no model of smolcls"),
        ({"tokenizer": "{}"}, r"changed\.onnx is damaged: .*\. Build it again"),
        ({"tokenizer": "\x00"}, r"changed\.onnx is damaged: "),
        ({"first_past": "!"}, r"changed\.onnx is damaged: "),
        ({"first_past": "AAAA"}, r"changed\.onnx is damaged: "),
        ({"first_past": "A" * 4 * 512}, r"changed\.onnx is damaged: "),
        ({"first_past": "A" * 4 * 85 + "AA=="}, r"changed\.onnx is damaged: "),  # of one layer alone
        ({"first_past": ""}, r"changed\.onnx is damaged: "),
        ({"context": "much"}, r"changed\.onnx is damaged: "),
        ({"first_token": "0"}, "vocabulary lacks ChatML's tokens; smolcls needs a model such as SmolLM2"),
    ],
)
def test_damaged_metadata(tiny_onnx: Path, tmp_path: Path, changes: dict[str, str | None], reason: str) -> None:
    path = with_metadata(tiny_onnx, tmp_path / "changed.onnx", **changes)
    with pytest.raises(ModelError, match=reason):
        load(path)


def test_a_vocabulary_without_the_end_of_a_turn(tiny_onnx: Path, tmp_path: Path) -> None:
    tokenizer = ByHand(tiny_onnx).metadata["tokenizer"].replace("<|im_end|>", "<|im_fin|>")
    with pytest.raises(ModelError, match="vocabulary lacks ChatML's tokens"):
        load(with_metadata(tiny_onnx, tmp_path / "changed.onnx", tokenizer=tokenizer))


def test_a_prompt_that_is_longer_than_the_model_can_read(tiny_onnx: Path) -> None:
    with pytest.raises(ModelError, match=r"the model reads at most 8192\. Lower the task's max_text_bytes, or"):
        load(tiny_onnx, task=Task(["a", "b"], max_text_bytes=9000))
    with pytest.raises(ModelError, match=r"may take \d+ tokens"):  # the labels' tokens count
        load(tiny_onnx, task=Task(["a" * 4000 + "b", "a" * 4000 + "c"], max_text_bytes=4096))


def test_the_longest_prompt_fits(tiny_onnx: Path, tmp_path: Path) -> None:
    task = Task(["ab", "ac"], max_text_bytes=1000)
    with load(tiny_onnx, task=task) as classifier:
        assert classifier.classify("\N{PILE OF POO}" * 500).truncated
        tokens = len(classifier.prompt_tokens("x" * 1000))
        frame = len(Tokenizer.from_str(ByHand(tiny_onnx).metadata["tokenizer"]).encode(prompt.prefix(task)).ids)
    just, short = (
        with_metadata(tiny_onnx, tmp_path / f"{size}.onnx", context=str(size))
        for size in (frame + tokens, frame + tokens - 1)
    )
    with load(just, task=task) as classifier:
        assert classifier.classify("x" * 1000).label is not None
    with pytest.raises(ModelError, match=f"may take {frame + tokens} tokens"):
        load(short, task=task)


def test_logits_that_are_no_numbers_are_an_error(tiny_onnx: Path, tmp_path: Path) -> None:
    def spoil(model: Any) -> None:
        [scale] = [item for item in model.graph.initializer if item.name == "layers.1.mlp.down_proj.scale"]
        values = np.full(onnx.numpy_helper.to_array(scale).shape, np.nan, np.float32)
        scale.CopyFrom(onnx.numpy_helper.from_array(values, scale.name))

    with (
        load(edited(tiny_onnx, tmp_path / "spoilt.onnx", spoil)) as classifier,
        pytest.raises(BackendError, match="logits that are not numbers; its file may be damaged"),
    ):
        classifier.classify("hi")


def test_what_onnx_runtime_cannot_compute_is_an_error(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(tiny_onnx, task=TASKS["chain"]) as classifier:
        before = [log_probabilities(classifier, text) for text in TEXTS]
        with monkeypatch.context() as patch:
            patch.setattr(classifier._engine, "_candidates", [10**6])
            with pytest.raises(BackendError, match=r"ONNX Runtime could not compute \d+ tokens: .*\."):
                classifier.classify("hi")
        assert [log_probabilities(classifier, text) for text in TEXTS] == before  # what it had set up is cleared


def test_loading_and_classifying_are_silent(tiny_onnx: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with load(tiny_onnx, task=SPREAD) as classifier:
        classifier.classify_batch(["hi", "x" * 500])
    with pytest.raises(ModelError):
        load(tiny_onnx.with_suffix(".gguf"))
    assert capfd.readouterr() == ("", "")


def test_the_interpreters_end_is_silent_without_close(tiny_onnx: Path) -> None:
    ended = run(
        """
        import sys, smolcls
        kept = smolcls.load("onnx:" + sys.argv[1], threads=1)
        print(kept.classify("hi").label is not None)
        """,
        tiny_onnx,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_gets_an_error_and_does_not_hang(tiny_onnx: Path) -> None:
    check_fork(f"onnx:{tiny_onnx}", "ONNX Runtime")


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc keeps it, others not")
def test_memory_that_a_thread_freed_goes_back_to_the_system() -> None:
    ended = run(
        """
        import pathlib, threading
        import numpy
        from smolcls import native

        def held():
            return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

        def work():
            many = [numpy.ones(12_000) for _ in range(1500)]
            kept.append(many[-1])

        kept = []
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        before = held()
        native.trim_memory()
        print(before - held())
        """
    )
    assert float(ended.stdout) > 50, ended.stderr


@BUNDLED
@pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs the extra llamacpp")
@pytest.mark.model
def test_the_shipped_model_answers_as_it_does_in_llama_cpp() -> None:
    from smolcls.backends.llamacpp import LlamaCppClassifier

    texts = [row.text for row in shipped("three-type", "test")][:60]
    with OnnxClassifier() as one, LlamaCppClassifier() as other:
        assert [text for text in texts if one.tokenize(text) != other.tokenize(text)] == []
        assert one.tokenize(prompt.END_OF_TURN) == other.tokenize(prompt.END_OF_TURN) != [2]
        pairs = list(zip(one.classify_batch(texts), other.classify_batch(texts), strict=True))
    assert all(item.calibrated for pair in pairs for item in pair)
    same = sum(mine.label == theirs.label for mine, theirs in pairs)
    assert same >= 0.95 * len(texts)
    moved = [
        abs(mine.probabilities[name] - theirs.probabilities[name])
        for mine, theirs in pairs
        for name in mine.probabilities
    ]
    assert statistics.mean(moved) < 0.03
