"""The transformers backend on a tiny model: scores against full passes without a cache, loading, and errors."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from contract import ClassifierContract, write_safetensors, write_tiny_folder, write_tiny_gguf

import smolcls
from smolcls import BackendError, Classifier, ConfigError, MissingExtraError, ModelError, Task, prompt
from smolcls.calibration import Calibration
from smolcls.errors import BackendUnavailableError

torch = pytest.importorskip("torch", reason="needs the extra transformers")
transformers = pytest.importorskip("transformers", reason="needs the extra transformers")
tokenizers = pytest.importorskip("tokenizers", reason="needs the extra transformers")
np = pytest.importorskip("numpy", reason="needs the extra transformers")

from smolcls.backends import _transformers_loading as loading  # noqa: E402
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


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The model is too small to share out; on a busy machine the threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    TestContract.model = write_tiny_folder(tmp_path_factory.mktemp("tiny") / "model")
    return TestContract.model


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """A model folder that a test may damage."""
    return write_tiny_folder(tmp_path / "own")


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


# Tokens


def test_no_special_token_is_read_in_a_text(classifier: TransformersClassifier) -> None:
    assert len(classifier.tokenize("<|im_end|>")) == len("<|im_end|>")
    assert classifier.tokenize("<|im_start|>")[0] != 1


def test_tokens_are_those_of_the_file_whatever_class_it_names(own_folder: Path) -> None:
    # transformers rebuilds the tokenizer of this class, and would merge digits.
    (own_folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    content = json.loads((own_folder / "tokenizer.json").read_text())
    content["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }  # fmt: skip
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    vocab = content["model"]["vocab"]
    vocab["12"] = len(vocab)
    content["model"]["merges"].append(["1", "2"])
    (own_folder / "tokenizer.json").write_text(json.dumps(content))
    _grow(own_folder, len(vocab))
    with TransformersClassifier(own_folder, device="cpu") as made:
        assert made.tokenize("1212") == [vocab[digit] for digit in "1212"]


def _grow(folder: Path, size: int) -> None:
    """Give the model a row of zeros for a token more."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    rows = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = np.concatenate(
        [rows, np.zeros((size - len(rows), rows.shape[1]), rows.dtype)]
    )
    write_safetensors(folder / "model.safetensors", tensors)
    _change(folder, vocab_size=size)


def _change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


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


# Loading


@pytest.mark.parametrize("model", [None, "", "  ", 5])
def test_without_a_model_it_says_what_to_name(model: Any) -> None:
    with pytest.raises(
        ConfigError, match="needs a model: a folder, a Hub id or a GGUF file, such as transformers:runs"
    ):
        TransformersClassifier(model)
    with pytest.raises(ConfigError, match=r"found None. The embedded default is llamacpp's"):
        smolcls.load("transformers")


def test_a_gguf_file_answers_as_the_folder_it_was_made_of(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the package gguf")
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    with (
        TransformersClassifier(path, device="cpu") as made,
        TransformersClassifier(path.with_suffix(""), device="cpu") as source,
    ):
        for text in (*TEXTS, "٣٤٣٤ ①② 1212", "x²³"):
            assert made.tokenize(text) == source.tokenize(text)
        for one, other in zip(made.predict_proba(TEXTS), source.predict_proba(TEXTS), strict=True):
            assert one == pytest.approx(other, abs=0.01)


def test_a_gguf_file_that_is_split_in_an_unknown_way_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the package gguf")
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes().replace(b"smollm", b"foobar", 1))
    with pytest.raises(
        ModelError, match="splits texts by the pre-tokenizer 'foobar', which transformers does not know"
    ):
        TransformersClassifier(path, device="cpu")


def test_a_gguf_file_needs_a_transformers_that_dequantises(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the package gguf")
    path = write_tiny_gguf(tmp_path / "tiny.gguf")

    class Old:
        __version__ = "5.16.0"

    with pytest.raises(MissingExtraError, match=r"needs transformers 5.17 or newer; found 5.16.0. Run: pip install -U"):
        loading._load_gguf(Old(), path, torch.float32)


def test_loading_is_silent_and_leaves_settings_as_they_were(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("gguf", reason="needs the package gguf")
    hub = pytest.importorskip("huggingface_hub.utils")
    own = transformers.utils.logging
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    level = own.get_verbosity()
    for wanted, bars in ((own.INFO, True), (own.WARNING, False)):
        own.set_verbosity(wanted)
        (own.enable_progress_bar if bars else own.disable_progress_bar)()
        for model in (folder, path):
            TransformersClassifier(model, device="cpu").close()
        assert own.get_verbosity() == wanted
        assert own.is_progress_bar_enabled() is bars
        assert hub.are_progress_bars_disabled() is not bars
    own.set_verbosity(level)
    own.enable_progress_bar()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert caplog.records == []


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _cut(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return cut


def _more_layers(folder: Path) -> None:
    _change(folder, num_hidden_layers=3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("config.json"), "has no config.json: expected a model folder that transformers saved"),
        (_remove("tokenizer.json"), "has no tokenizer.json: expected a model folder that transformers saved"),
        (
            _remove("model.safetensors"),
            "transformers cannot load .*no file named model.safetensors.* Expected a folder",
        ),
        (_cut("config.json"), r"transformers cannot load .*not a valid JSON file\. Expected a folder"),
        (_cut("tokenizer.json"), "transformers cannot load .*Cannot instantiate Tokenizer"),
        (_cut("model.safetensors"), "transformers cannot load .*Error while deserializing header"),
        (_more_layers, "lacks 9 of the model's weights, such as model.layers.2.input_layernorm.weight. Save it again"),
        (lambda folder: _change(folder, hidden_size="x"), "transformers cannot load .*hidden_size"),
        (lambda folder: _change(folder, hidden_size=128), "transformers cannot load "),
        (lambda folder: _change(folder, rope_parameters="x"), "transformers cannot load "),
        (lambda folder: _change(folder, model_type="nosuch"), "transformers cannot load .*`nosuch`"),
        (lambda folder: _change(folder, model_type="t5"), "transformers cannot load .*T5Config"),
        (
            lambda folder: _change(folder, max_position_embeddings=512),
            r"may take \d+ tokens; .* trained for 512. Lower",
        ),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{}"),
            "holds a PEFT adapter, not a whole model. Merge it into its base first",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(own_folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(own_folder)
    with pytest.raises(ModelError, match=message):
        TransformersClassifier(own_folder, device="cpu")


def test_no_pickle_is_read(own_folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(own_folder / "model.safetensors"), own_folder / "pytorch_model.bin")
    (own_folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"transformers cannot load .*no file named model\.safetensors"):
        TransformersClassifier(own_folder, device="cpu")


def test_a_vocabulary_without_chatml_is_refused(own_folder: Path) -> None:
    path = own_folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_end|>", "<|fin|>"))
    with pytest.raises(ModelError, match=r"vocabulary has no token <\|im_end\|>; smolcls needs a model with ChatML's"):
        TransformersClassifier(own_folder, device="cpu")


def test_a_tokenizer_of_another_model_is_refused(own_folder: Path) -> None:
    content = json.loads((own_folder / "tokenizer.json").read_text())
    size = len(content["model"]["vocab"])
    content["model"]["vocab"]["zz"] = size
    (own_folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=rf"its tokenizer has {size + 1} tokens, its model {size}; they do not belong"):
        TransformersClassifier(own_folder, device="cpu")


def test_a_model_that_does_not_see_the_whole_prompt_is_refused(own_folder: Path) -> None:
    mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "head_dim": 16}
    _change(own_folder, **mistral, sliding_window=256)
    with pytest.raises(ModelError, match="in a DynamicSlidingWindowLayer; smolcls needs one with full attention over"):
        TransformersClassifier(own_folder, device="cpu")
    _change(own_folder, **mistral, sliding_window=4096)
    with TransformersClassifier(own_folder, device="cpu") as made:
        assert made.classify("hi").label is not None


def test_a_model_that_counts_positions_itself_is_refused(own_folder: Path) -> None:
    size = json.loads((own_folder / "config.json").read_text())["vocab_size"]
    config = transformers.BloomConfig(vocab_size=size, hidden_size=16, n_layer=1, n_head=2)
    transformers.BloomForCausalLM(config).save_pretrained(own_folder)
    with pytest.raises(ModelError, match="is a BloomForCausalLM, which takes no position_ids; smolcls needs a decoder"):
        TransformersClassifier(own_folder, device="cpu")


@pytest.mark.parametrize("name", ["runs/x/merged", "/no/such/folder", "merged"])
def test_a_model_that_is_not_there(name: str) -> None:
    with pytest.raises(
        ModelError, match=f"There is no model '{name}': expected a folder that transformers saved, a GGUF"
    ):
        TransformersClassifier(name, device="cpu")


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no model file nosuch.gguf. Expected a GGUF file"):
        TransformersClassifier("nosuch.gguf", device="cpu")
    (tmp_path / "pickle.bin").write_bytes(b"\x80\x04 not a model")
    with pytest.raises(ModelError, match="is not a whole GGUF file: it starts with"):
        TransformersClassifier(tmp_path / "pickle.bin", device="cpu")


def test_a_hub_id_is_found_in_the_users_cache_and_nowhere_else(folder: Path, tmp_path: Path) -> None:
    """In a process of its own: the Hub's library reads its environment once."""
    home = tmp_path / "hub" / "models--someone--tiny"
    commit = "0" * 40
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots").mkdir()
    (home / "snapshots" / commit).symlink_to(folder)
    code = (
        "import smolcls\n"
        "with smolcls.load('transformers:someone/tiny', device='cpu') as made:\n"
        "    assert made.classify('hi').label is not None\n"
        "try:\n"
        "    smolcls.load('transformers:someone/else', device='cpu')\n"
        "except smolcls.ModelError as error:\n"
        "    assert str(error).startswith('transformers cannot load someone/else: '), error\n"
        "    assert 'or a Hub id such as' in str(error), error\n"
        "else:\n"
        "    raise AssertionError('no error')\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Calibration


def _calibration(backend_name: str, task: Task, temperature: float = 4.0) -> Calibration:
    return Calibration(temperature, task.fingerprint, "", backend_name, 100, 0.5, 0.4)


def test_the_folders_own_calibration_is_taken_where_it_was_fitted_for_this_backend(own_folder: Path) -> None:
    task = Task.load("three-type")
    with TransformersClassifier(own_folder, device="cpu") as made:
        plain = made.classify("hi")
    assert plain.calibrated is False
    _calibration("llamacpp", task).save(own_folder / "calibration.json")
    with TransformersClassifier(own_folder, device="cpu") as made:
        assert made.classify("hi").probabilities == plain.probabilities
    _calibration("transformers", task).save(own_folder / "calibration.json")
    with TransformersClassifier(own_folder, device="cpu") as made:
        softened = made.classify("hi")
    assert softened.calibrated is True
    assert softened.confidence < plain.confidence
    with TransformersClassifier(own_folder, device="cpu", calibration=_calibration("transformers", task, 1.0)) as made:
        assert made.classify("hi").confidence == pytest.approx(plain.confidence)
    with pytest.raises(ConfigError, match="The calibration was fitted for another task"):
        TransformersClassifier(own_folder, task=CARDS, device="cpu")


# Failures


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "device 'cpu' is too small: CUDA out of",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nmore"),
            "is too small: .*: you tried. Close",
        ),
        (MemoryError(), "is too small: MemoryError. Close other programs that use it, try dtype='bfloat16', or take a"),
        (
            RuntimeError("kernel image is missing"),
            "torch could not run the model on device 'cpu': kernel image is missing",
        ),
    ],
)
def test_torchs_failures_are_errors_of_smolcls(folder: Path, error: Exception, message: str) -> None:
    with TransformersClassifier(folder, device="cpu") as made:

        def fail(_module: Any, _inputs: Any) -> None:
            raise error

        hook = made._engine._model.register_forward_pre_hook(fail)
        with pytest.raises(BackendError, match=message):
            made.classify("hi")
        hook.remove()
        assert made.classify("hi").label is not None


def test_a_model_that_does_not_fit_says_what_helps(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(BackendError, match=r"The memory of device 'cpu' is too small: .* take a smaller model"):
        TransformersClassifier(folder, device="cpu")


def test_a_package_that_a_model_needs_is_named(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ImportError("This model requires `foo`. Run pip install foo")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(MissingExtraError, match="needs a package that is not installed: This model requires `foo`"):
        TransformersClassifier(folder, device="cpu")


def test_logits_that_are_no_numbers_are_an_error(folder: Path) -> None:
    with TransformersClassifier(folder, device="cpu") as made:
        with torch.no_grad():
            made._engine._model.model.norm.weight.fill_(math.nan)
        with pytest.raises(
            BackendError, match="The model gave logits that are not numbers; its weights may be damaged"
        ):
            made.classify("hi")


def test_a_forked_process_is_told_rather_than_left_hanging(
    monkeypatch: pytest.MonkeyPatch, classifier: TransformersClassifier, folder: Path
) -> None:
    monkeypatch.setattr(loading, "_process", os.getpid() + 1)
    with pytest.raises(
        BackendError, match=r"torch cannot compute in a process that was forked after it was used. Start"
    ):
        classifier.classify("hi")
    with pytest.raises(BackendError, match="or classify for the first time after the fork"):
        TransformersClassifier(folder, device="cpu")


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, folder: Path, package: str
) -> None:
    line = r'pip install "smolcls\[transformers\]"'
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=f"The transformers backend needs the package `{package}`, .*{line}"):
        TransformersClassifier(folder, device="cpu")
    reason = TransformersClassifier.why_unavailable()
    assert reason == f'{package} is not installed; pip install "smolcls[transformers]"'


def test_it_is_available_here() -> None:
    assert TransformersClassifier.why_unavailable() is None


def test_asking_whether_it_is_available_imports_nothing() -> None:
    code = (
        "import sys\n"
        "from smolcls.backends.transformers import TransformersClassifier\n"
        "assert TransformersClassifier.why_unavailable() is None\n"
        "assert not {'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules), sorted(sys.modules)\n"
    )
    with contextlib.chdir(Path(__file__).parent):
        subprocess.run([sys.executable, "-c", code], check=True)
