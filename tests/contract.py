"""What every classifier promises, as a class of tests; and a tiny model to hold backends to it.

A backend's test subclasses `ClassifierContract` and says how to make the classifier. The tiny model is a
Llama of random weights with a byte-level vocabulary of a few hundred tokens: it loads in milliseconds,
and its logits are as good as any for comparing one way of computing them with another.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import smolcls
from smolcls import BackendError, Classifier, ConfigError, InputError, Prediction

#: Spellings of control tokens: SmolLM2's whole list is read from its vocabulary by the prompt's tests.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<jupyter_output>", "<empty_output>",
    "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<s>", "</s>", "<unk>", "<pad>", "<mask>", "<bos>", "<eos>",
    "<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>", "<|reserved_special_token_250|>", "<|python_tag|>",
    "<start_of_turn>", "<end_of_turn>", "<|turn>", "<turn|>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[TOOL_CALLS]",
    "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|fim_pad|>",
    "<｜begin▁of▁sentence｜>", "<｜User｜>", "<|START_OF_TURN_TOKEN|>", "<BOS_TOKEN>", "<|channel|>",
    "<|vision_start|>",
)  # fmt: skip

_HARD = ("\x00", "\ud800", "\udfff", "\ud83d\ude00", "\u2003", "\u200b", "\ufeff", "\N{PILE OF POO}", "\r\n", '"""')

#: Any text at all: blank, of 100,000 characters, lone surrogates, NUL, only special tokens.
TEXTS: st.SearchStrategy[str] = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=200),
    st.text(st.sampled_from(" \t\n\r\x0b\x1c\x85\xa0\u2003\u3000"), max_size=20),
    st.lists(st.sampled_from([*SPECIAL_TOKENS, *_HARD, " ", "fix", "<", "|", "["]), max_size=12).map("".join),
    st.builds(
        lambda unit, size: unit * (size // len(unit)),
        st.text(st.characters(exclude_categories=()), min_size=1, max_size=9),
        st.integers(500, 100_000),
    ),
)


def check_any_text(classify: Callable[[str], Prediction], examples: int) -> None:
    """Whatever the text: a prediction, or for a blank one an error of this library."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(TEXTS)
    def check(text: str) -> None:
        if not text.strip():
            with pytest.raises(InputError, match="The text to classify is empty"):
                classify(text)
            return
        prediction = classify(text)
        assert isinstance(prediction, Prediction)
        assert math.isclose(math.fsum(prediction.probabilities.values()), 1.0, abs_tol=1e-9)

    check()


class ClassifierContract:
    """Promises 1 and 6 of every classifier: probabilities of all labels in order, batches as the one path."""

    #: The backend's registry name.
    backend: ClassVar[str]
    #: How far a batch's probabilities may lie from those of single calls.
    tolerance: ClassVar[float] = 1e-6
    #: Whether the backend reads only so much of a text and says when it left something out.
    shortens: ClassVar[bool] = True
    #: Whether making one takes so long that the tests which need one of their own are left to a smaller model.
    slow: ClassVar[bool] = False
    #: How many random texts are tried.
    examples: ClassVar[int] = 100

    @classmethod
    def make(cls, **options: Any) -> Classifier:
        """A new classifier of this backend for the shipped task, made through `smolcls.load`."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def classifier(cls) -> Iterator[Classifier]:
        with cls.make() as made:
            yield made

    def test_probabilities_are_complete_in_order_and_sum_to_one(self, classifier: Classifier) -> None:
        prediction = classifier.classify("fix the login bug and run the tests")
        assert tuple(prediction.probabilities) == classifier.task.names == ("command", "prompt", "workflow")
        assert math.isclose(math.fsum(prediction.probabilities.values()), 1.0, abs_tol=1e-9)
        assert all(0.0 <= value <= 1.0 for value in prediction.probabilities.values())
        assert prediction.label == max(prediction.probabilities, key=lambda name: prediction.probabilities[name])
        assert prediction.confidence == max(prediction.probabilities.values())
        assert prediction.backend == self.backend
        assert prediction.latency_ms >= 0.0

    def test_a_batch_is_its_texts_one_by_one(self, classifier: Classifier) -> None:
        texts = ["/help", "what is recursion?", "rename getUser to fetchUser everywhere", "  /clear ", "hi", "ß" * 700]
        batch = classifier.classify_batch(texts)
        assert len(batch) == len(texts)
        for text, together in zip(texts, batch, strict=True):
            alone = classifier.classify(text)
            assert list(together.probabilities) == list(alone.probabilities)
            for name, value in together.probabilities.items():
                assert value == pytest.approx(alone.probabilities[name], abs=self.tolerance)
            assert together.truncated == alone.truncated

    def test_an_empty_list_gives_an_empty_list(self, classifier: Classifier) -> None:
        assert classifier.classify_batch([]) == []
        assert classifier.predict([]) == []
        assert classifier.predict_proba([]) == []

    @pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u2003\u3000\x85"])
    def test_a_blank_text_is_refused(self, classifier: Classifier, text: str) -> None:
        with pytest.raises(InputError, match=r"The text to classify is empty\. Expected at least one character"):
            classifier.classify(text)

    @pytest.mark.parametrize(("text", "kind"), [(None, "NoneType"), (5, "int"), (b"/help", "bytes"), (["hi"], "list")])
    def test_what_is_no_text_is_refused(self, classifier: Classifier, text: Any, kind: str) -> None:
        with pytest.raises(InputError, match=f"A text to classify must be a str; found {kind}"):
            classifier.classify(text)

    def test_the_first_bad_text_of_a_batch_is_named(self, classifier: Classifier) -> None:
        with pytest.raises(InputError, match="Text 2 of 3: The text to classify is empty"):
            classifier.classify_batch(["hi", " ", "/help"])
        with pytest.raises(InputError, match="Expected a list of texts; found a single one"):
            classifier.classify_batch("hi")
        with pytest.raises(InputError, match="Expected a list of texts; found NoneType"):
            classifier.classify_batch(None)  # type: ignore[arg-type]

    def test_a_long_text_is_shortened_and_says_so(self, classifier: Classifier) -> None:
        long, short = classifier.classify_batch(["explain this: " + "word " * 2000, "explain this: word"])
        assert long.truncated is self.shortens
        assert short.truncated is False

    def test_below_min_confidence_the_label_is_none(self) -> None:
        self._skip_if_slow()
        with self.make(min_confidence=1.0) as strict:
            prediction = strict.classify("what is recursion?")
            assert prediction.confidence < 1.0
            assert prediction.label is None
            assert strict.predict(["what is recursion?"]) == [None]
            assert math.isclose(math.fsum(prediction.probabilities.values()), 1.0, abs_tol=1e-9)
        with pytest.raises(ConfigError, match=r"min_confidence must be a number between 0 and 1; found 1\.5"):
            self.make(min_confidence=1.5)

    def test_scikit_learns_names(self, classifier: Classifier) -> None:
        texts = ["/help", "what is recursion?"]
        assert classifier.classes_ == ["command", "prompt", "workflow"]
        rows, labels = classifier.predict_proba(texts), classifier.predict(texts)
        assert [len(row) for row in rows] == [3, 3]
        assert labels == [classifier.classes_[row.index(max(row))] for row in rows]

    def test_closing(self) -> None:
        self._skip_if_slow()
        with self.make() as made:
            assert made.classify("hi").label is not None
        made.close()
        with pytest.raises(BackendError, match="was closed; make a new one"):
            made.classify("hi")
        with pytest.raises(BackendError, match="was closed; make a new one"):
            made.classify_batch([])

    def test_an_unknown_option_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(ConfigError, match=r"cannot be made from .*colour.*It takes: .*min_confidence"):
            self.make(colour="red")

    def _skip_if_slow(self) -> None:
        if self.slow:
            pytest.skip("loads slowly; a smaller model of the backend is held to it")

    def test_any_text_is_answered_or_refused(self, classifier: Classifier) -> None:
        check_any_text(classifier.classify, self.examples)


def write_tiny_folder(folder: Path, *, seed: int = 0, heads: int = 4, kv_heads: int = 2, layers: int = 2) -> Path:
    """Write a model folder as transformers saves it: a Llama of random weights, and its tokenizer.

    Its vocabulary is ChatML's tokens, the 256 bytes, and merges that make the shipped task's labels one
    token each; any other label is a sequence of bytes.
    """
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = _vocabulary(("command", "prompt", "workflow"))
    width, inner, size = 64, 96, len(vocab)
    head = width // heads
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (size, width), "model.norm": (width,)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.self_attn.q_proj": (heads * head, width),
            f"{at}.self_attn.k_proj": (kv_heads * head, width),
            f"{at}.self_attn.v_proj": (kv_heads * head, width),
            f"{at}.self_attn.o_proj": (width, heads * head),
            f"{at}.mlp.gate_proj": (inner, width),
            f"{at}.mlp.up_proj": (inner, width),
            f"{at}.mlp.down_proj": (width, inner),
            f"{at}.input_layernorm": (width,),
            f"{at}.post_attention_layernorm": (width,),
        }
    tensors = {
        f"{name}.weight": (random.normal(0.0, 0.25, shape) if len(shape) == 2 else random.uniform(0.5, 1.5, shape))
        for name, shape in shapes.items()
    }
    write_safetensors(folder / "model.safetensors", {key: value.astype("<f4") for key, value in tensors.items()})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": size,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(vocab, merges)))
    return folder


def write_safetensors(path: Path, tensors: dict[str, Any], kinds: dict[str, str] | None = None) -> None:
    """Write numpy arrays as a safetensors file; `kinds` overrides the type that is written for a name."""
    names = {"<f4": "F32", "<f2": "F16", "<f8": "F64", "<u2": "BF16", "<i8": "I64"}
    header, offset = {}, 0
    for name, array in tensors.items():
        kind = (kinds or {}).get(name, names[array.dtype.str])
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in tensors.values()))


def write_tiny_gguf(path: Path, **options: Any) -> Path:
    """Write the tiny model as a GGUF file in F16, through this library's own export."""
    from smolcls.export.gguf import open_source, write_f16

    write_f16(open_source(write_tiny_folder(path.with_suffix(""), **options)), path)
    return path


def load_tiny(path: Path, **options: Any) -> Classifier:
    """The llama.cpp backend on a tiny model; one thread, for it is too small to share out."""
    return smolcls.load(f"llamacpp:{path}", threads=1, **options)


def _bytes_to_unicode() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes (Radford et al. 2019, encoder.py)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(moved)) for byte in range(256)]


def _vocabulary(words: tuple[str, ...]) -> tuple[dict[str, int], list[list[str]]]:
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_bytes_to_unicode()]
    merges: list[list[str]] = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                merges.append([word[: end - 1], word[end - 1]])
                tokens.append(word[:end])
    return {token: index for index, token in enumerate(tokens)}, merges


def _tokenizer(vocab: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": token, **flags} for token, index in vocab.items() if index < 3],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]},
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "unk_token": None, "vocab": vocab, "merges": merges},
    }
