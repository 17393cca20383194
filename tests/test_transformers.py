"""The transformers backend on a tiny model: its scores against full passes without a cache, and devices and types."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from contract import ClassifierContract, write_tiny_folder

import smolcls
from smolcls import BackendError, Classifier, ConfigError, Task, prompt
from smolcls.errors import BackendUnavailableError

torch = pytest.importorskip("torch", reason="needs the extra transformers")
transformers = pytest.importorskip("transformers", reason="needs the extra transformers")
tokenizers = pytest.importorskip("tokenizers", reason="needs the extra transformers")

from smolcls.backends import transformers as backend  # noqa: E402
from smolcls.backends.transformers import TransformersClassifier  # noqa: E402

# In the tiny vocabulary these are sequences of bytes: they share beginnings, and one is the beginning of another.
CARDS = Task(["card", "card_lost", "card_stolen", "cash", "refund"], name="cards", instruction="What is it about?")
# And these part only after a beginning that all of them share.
PAYMENTS = Task(["pay_in", "pay_out", "pay_out_late"], name="payments")
TEXTS = [
    *("/help", "hi", "what is recursion?", "rename getUser to fetchUser everywhere", "<|im_end|>", "日本語 ٣٤ 12"),
    *("x" * size for size in (1, 7, 8, 30, 100, 101, 333, 900, 2000)),
]


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    TestContract.model = write_tiny_folder(tmp_path_factory.mktemp("tiny") / "model")
    return TestContract.model


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Iterator[TransformersClassifier]:
    with TransformersClassifier(folder, device="cpu") as made:
        yield made


class TestContract(ClassifierContract):
    backend = "transformers"
    tolerance = 1e-4
    examples = 40
    model: ClassVar[Path]

    @classmethod
    def make(cls, **options: Any) -> Classifier:
        return smolcls.load(f"transformers:{cls.model}", device="cpu", **options)


# Scores


def full_pass(folder: Path) -> Callable[[Sequence[int]], Any]:
    """Log-probabilities of the next token after some tokens, from the whole sequence and without a cache."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def after(tokens: Sequence[int]) -> Any:
        with torch.inference_mode():
            return model(torch.tensor([list(tokens)]), use_cache=False).logits[0, -1].log_softmax(-1)

    return after


def by_brute_force(after: Callable[[Sequence[int]], Any], folder: Path, task: Task, text: str) -> dict[str, float]:
    """Label probabilities token by token: at each step the choice between the tokens that a label can go on with."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    start = tokenizer.encode(str(prompt.render(task, text)), add_special_tokens=False).ids
    end = tokenizer.token_to_id("<|im_end|>")
    labels = {name: [*tokenizer.encode(name, add_special_tokens=False).ids, end] for name in task.names}
    found = {}
    for name, tokens in labels.items():
        total = 0.0
        for place, token in enumerate(tokens):
            choices = sorted({other[place] for other in labels.values() if other[:place] == tokens[:place]})
            if len(choices) > 1:
                step = after([*start, *tokens[:place]])[choices].log_softmax(-1)
                total += float(step[choices.index(token)])
        found[name] = math.exp(total)
    return found


@pytest.fixture(scope="module")
def after(folder: Path) -> Callable[[Sequence[int]], Any]:
    return full_pass(folder)


@pytest.mark.parametrize("task", [CARDS, PAYMENTS, Task.load("three-type")], ids=lambda task: task.name)
def test_scores_are_those_of_full_passes(after: Callable[[Sequence[int]], Any], folder: Path, task: Task) -> None:
    texts = ["lost it", "I would like my money back, please, and a new card too", "日本語 <|im_end|> 42"]
    with TransformersClassifier(folder, task=task, device="cpu") as made:
        predictions = made.classify_batch(texts)
    for text, prediction in zip(texts, predictions, strict=True):
        expected = by_brute_force(after, folder, task, text)
        assert dict(prediction.probabilities) == pytest.approx(expected, abs=1e-5)
        assert len({round(value, 6) for value in expected.values()}) == len(task.names)


def test_label_mass_is_the_probability_of_the_labels_first_tokens(
    classifier: TransformersClassifier, after: Callable[[Sequence[int]], Any], folder: Path
) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    start = tokenizer.encode(str(prompt.render(classifier.task, "hi")), add_special_tokens=False).ids
    firsts = [tokenizer.token_to_id(name) for name in classifier.task.names]
    expected = float(after(start)[firsts].exp().sum())
    assert classifier.classify("hi").label_mass == pytest.approx(expected, abs=1e-5)
    assert 0.0 < expected < 1.0


@pytest.mark.parametrize("task", [CARDS, Task.load("three-type")], ids=lambda task: task.name)
@pytest.mark.parametrize("budget", [300, 2048])
def test_a_batch_of_many_lengths_equals_single_calls(
    monkeypatch: pytest.MonkeyPatch, folder: Path, task: Task, budget: int
) -> None:
    monkeypatch.setattr(backend, "_BUDGET", {"cpu": budget})
    with TransformersClassifier(folder, task=task, device="cpu") as made:
        together = made.classify_batch(TEXTS)
        alone = [made.classify(text) for text in TEXTS]
    assert len({prediction.confidence for prediction in alone}) > len(TEXTS) // 2
    for one, other in zip(together, alone, strict=True):
        assert one.label == other.label
        assert dict(one.probabilities) == pytest.approx(dict(other.probabilities), abs=1e-4)
        assert one.truncated == other.truncated
        assert one.label_mass == pytest.approx(other.label_mass, abs=1e-4)


@pytest.mark.parametrize("task", [CARDS, Task.load("three-type")], ids=lambda task: task.name)
def test_a_pass_stays_within_its_budget(monkeypatch: pytest.MonkeyPatch, folder: Path, task: Task) -> None:
    monkeypatch.setattr(backend, "_BUDGET", {"cpu": 400})
    seen: list[tuple[int, int]] = []
    with TransformersClassifier(folder, task=task, device="cpu") as made:
        made._engine._model.register_forward_pre_hook(
            lambda _module, _inputs, named: seen.append(tuple(named["attention_mask"].shape)), with_kwargs=True
        )
        made.classify_batch(TEXTS * 3)
    assert max(rows for rows, _ in seen) > 1
    assert all(rows == 1 or rows * columns <= 400 for rows, columns in seen)


def test_the_prefix_is_never_changed(folder: Path) -> None:
    with TransformersClassifier(folder, task=CARDS, device="cpu") as made:
        cached = made._engine._prefix
        before = [(layer.keys.clone(), layer.values.clone()) for layer in cached.cache.layers]
        first = made.classify("lost it").probabilities
        made.classify_batch(TEXTS)
        assert made.classify("lost it").probabilities == first
        assert made._engine._prefix is cached
        for layer, (keys, values) in zip(cached.cache.layers, before, strict=True):
            assert torch.equal(layer.keys, keys)
            assert torch.equal(layer.values, values)
        assert cached.mask.shape == (1, before[0][0].shape[-2])


def test_many_threads_get_the_answers_of_one(classifier: TransformersClassifier) -> None:
    expected = classifier.predict_proba(TEXTS)
    found: dict[int, list[list[float]]] = {}

    def work(number: int) -> None:
        found[number] = classifier.predict_proba(TEXTS)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for rows in found.values():
        for row, wanted in zip(rows, expected, strict=True):
            assert row == pytest.approx(wanted, abs=1e-5)


def test_closing_frees_the_model(folder: Path) -> None:
    made = TransformersClassifier(folder, device="cpu")
    model = weakref.ref(made._engine._model)
    made.close()
    made.close()
    assert model() is None
    with pytest.raises(BackendError, match="This classifier was closed; make a new one"):
        made.tokenize("hi")


# Devices and types


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "float16", "torch.float32", "float64", None])
def test_types(classifier: TransformersClassifier, folder: Path, dtype: Any) -> None:
    with TransformersClassifier(folder, device="cpu", dtype=dtype) as made:
        named = str(dtype or "float32").removeprefix("torch.")
        assert made._engine._model.dtype == getattr(torch, named)
        for one, exact in zip(made.predict_proba(TEXTS), classifier.predict_proba(TEXTS), strict=True):
            assert one == pytest.approx(exact, abs=0.1 if named.endswith("16") else 1e-4)


def test_logits_are_computed_in_float32_where_the_model_is_not(folder: Path) -> None:
    kinds = []
    with TransformersClassifier(folder, device="cpu", dtype="bfloat16") as made:
        made._engine._model.register_forward_hook(lambda _m, _i, output: kinds.append(output.logits))
        made.classify("hi")
    assert kinds[0].dtype == torch.float32
    assert not torch.equal(kinds[0], kinds[0].bfloat16().float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device must be a torch device such as 'cpu' or 'cuda:1'; found 'gpu'"),
        ({"device": 1.5}, "device must be a torch device such as 'cpu' or 'cuda:1'; found 1.5"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, float64; found 'int8'"),
        ({"dtype": torch.int64}, "dtype must be one of float32, bfloat16, float16, float64; found torch.int64"),
    ],
)
def test_a_wrong_device_or_type_is_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TransformersClassifier(folder, **{"device": "cpu", **options})


def test_a_cuda_device_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"device='cuda:99' was asked for; torch finds \d+ CUDA devices"):
        TransformersClassifier(folder, device="cuda:99")
