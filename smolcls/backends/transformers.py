"""Models of Hugging Face transformers, on the CPU or a GPU.

The prompt's prefix goes through the model once; its keys and values are copied for each batch of texts, so a
batch costs its texts' tokens and nothing else. Texts of a batch are padded on the left: then the last column is
every text's last token, logits are computed for it alone, and labels of several tokens can be appended to all
rows at once. Padding has no effect: it is masked, and positions are counted without it.

Loading is `_transformers_loading`'s concern.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import math
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import smolcls.build as builder
from smolcls import native, prompt
from smolcls.backends import _transformers_loading as loading
from smolcls.calibration import Calibration, model_fingerprint
from smolcls.classifier import Classifier, Scores
from smolcls.errors import BackendError, ConfigError, ModelError, pip_line, require
from smolcls.files import user_path
from smolcls.scoring import LabelTrie, label_mass
from smolcls.task import Task

_MAX_TEXTS = 64  # texts in one pass; bounds the logits, a row of the vocabulary's size for each
# Tokens in one pass, prefix and padding included; bounds keys, values and activations. A CPU gains nothing from more.
_BUDGET = {"cpu": 2048}
_GPU_BUDGET = 8192


class TransformersClassifier(Classifier):
    """A causal language model through transformers.

    Args:
        model: a folder that transformers saved, a Hub id, or a GGUF file (which is dequantised).
        task: the task, its name or file; None is the shipped three-type task.
        calibration: a fitted temperature or its file; None takes the one in the model's folder if it was
            fitted for this task, backend and model.
        min_confidence: below this confidence the label is None.
        device: a torch device such as `cpu` or `cuda:1`; None is CUDA where it is available, else the CPU.
        dtype: `float32`, `bfloat16`, `float16`, `float64`, or torch's; None is bfloat16 on CUDA, else float32.

    Raises:
        ConfigError: no model was named, or no such device or dtype.
        MissingExtraError: torch, transformers, or a package that the model needs is not installed.
        ModelError: the model is missing, damaged, or cannot be scored.
        BackendError: the device is not there or its memory too small.
    """

    name: ClassVar[str] = "transformers"

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        task: Task | str | Path | None = None,
        calibration: Calibration | str | Path | None = None,
        min_confidence: float = 0.0,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(task=task, calibration=calibration, min_confidence=min_confidence)
        if not isinstance(model, (str, Path)) or not str(model).strip():
            raise ConfigError(
                "The transformers backend needs a model: a folder, a Hub id or a GGUF file, such as "
                f"transformers:runs/x/merged; found {model!r}. The embedded model is that of onnx and llamacpp."
            )
        self._source = model
        if os.path.isdir(user_path(model)):
            self.calibration_path = user_path(model) / builder.CALIBRATION
        self._settle_calibration(self.calibration_path)
        self._engine = _Engine(model, self.task, device, dtype)

    @classmethod
    def locate(cls, argument: str | None, **options: Any) -> Path | None:
        """The model's folder or GGUF file; None for a Hub id."""
        model = options.get("model") if argument is None else argument
        return None if model is None or not os.path.exists(user_path(model)) else user_path(model)

    @classmethod
    def why_unavailable(cls) -> str | None:
        """None where torch and transformers are installed; neither is imported to find out."""
        for package in ("torch", "transformers"):
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed; {pip_line('transformers')}"
        return None

    def score_batch(self, texts: Sequence[str]) -> list[Scores]:
        """Score texts, those of similar length together."""
        return self._engine.score([prompt.render(self.task, text) for text in texts])

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text as it stands in the prompt (no special tokens are parsed)."""
        return self._engine.tokenize(text)

    def prompt_tokens(self, text: str) -> list[int]:
        """Token ids that a call evaluates for a text: the text and what follows it; the prefix is in the cache."""
        return self._engine.tail(prompt.render(self.task, text))

    def model_fingerprint(self) -> str:
        """Of the file's or the folder's weights; a Hub id stands for itself."""
        path = user_path(self._source)
        return model_fingerprint(path) if os.path.exists(path) else str(self._source)

    def close(self) -> None:
        """Free the model; a call in another thread ends its pass first."""
        super().close()
        self._engine.close()


@dataclass(frozen=True, slots=True)
class _State:
    """What rows have behind them. It is never changed: whoever goes on from it copies the cache.

    Attributes:
        cache: keys and values, transformers' `DynamicCache`.
        mask: 1 for a token, 0 for padding; shape (rows, columns).
        ends: the position after each row's last token; shape (rows,).
    """

    cache: Any
    mask: Any
    ends: Any


class _Engine:
    """One model on one device.

    Passes hold a lock. torch would bear several threads, but each pass may use the whole memory budget and
    all cores; two at once would take twice the memory and no less time. Other threads come in between passes.
    """

    def __init__(self, source: str | Path, task: Task, device: str | None, dtype: Any) -> None:
        with native.bounded_spin():  # torch shares its work out through OpenMP, as llama.cpp does
            self._torch = require("torch", extra="transformers", purpose=loading.PURPOSE)
        transformers = require("transformers", extra="transformers", purpose=loading.PURPOSE)
        loading.forks.computing_here()
        self._device, kind = loading.place(self._torch, device, dtype)
        loaded = loading.load(source, self._device, kind)
        self._model: Any = loaded.model
        self._tokenizer, self._cache_argument = loaded.tokenizer, loaded.cache_argument
        self._lock = threading.Lock()
        self._budget = _BUDGET.get(self._device.type, _GPU_BUDGET)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        frame, self._suffix, ends = map(self.tokenize, (prompt.prefix(task), prompt.suffix(), prompt.END_OF_TURN))
        if len(ends) != 1:
            raise ModelError(
                f"The model's vocabulary has no token {prompt.END_OF_TURN}; smolcls needs a model with ChatML's "
                "tokens, such as SmolLM2-Instruct."
            )
        # From here on the spelling of a special token is read as the characters it is made of.
        self._tokenizer.encode_special_tokens = True
        self._trie = LabelTrie([self.tokenize(name) for name in task.names], ends[0])
        self._longest = max(len(branch.path) for branch in self._trie.branches)
        self._frame = len(frame)
        room = len(frame) + task.max_text_bytes + len(self._suffix) + self._longest
        self._check_context(room)
        empty = transformers.DynamicCache(config=self._model.config)
        nothing = self._torch.zeros((1, 0), dtype=self._torch.long, device=self._device)
        with self._running():
            self._prefix: Any = self._advance(_State(empty, nothing, nothing.sum(-1)), [tuple(frame)])[1]
        self._check_cache(room)

    def score(self, prompts: Sequence[prompt.Prompt]) -> list[Scores]:
        """Scores for rendered prompts, in order."""
        tails = [tuple(self.tail(item)) for item in prompts]
        scores: list[Scores | None] = [None] * len(prompts)
        for group in self._groups(tails):
            with self._lock, self._running():
                found = self._score_group([tails[index] for index in group])
            for index, (logits, mass) in zip(group, found, strict=True):
                scores[index] = Scores(self._trie.combine(logits), prompts[index].truncated, mass)
        return [score for score in scores if score is not None]

    def tokenize(self, text: str) -> list[int]:
        self._check_open()
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def tail(self, rendered: prompt.Prompt) -> list[int]:
        """Token ids of what follows the prefix."""
        return self.tokenize(rendered.text) + self._suffix

    def close(self) -> None:
        with self._lock:
            self._model = self._prefix = None
            if self._device.type == "cuda":
                self._torch.cuda.empty_cache()

    def _groups(self, tails: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
        """Indices of texts that go through the model together: neighbours in length, for padding is lost work."""
        group: list[int] = []
        frame = self._frame + self._longest
        for index in sorted(range(len(tails)), key=lambda item: len(tails[item])):
            tokens = (len(group) + 1) * (frame + len(tails[index]))
            if group and (tokens > self._budget or len(group) == _MAX_TEXTS):
                yield group
                group = []
            group.append(index)
        if group:
            yield group

    def _score_group(self, tails: Sequence[tuple[int, ...]]) -> list[tuple[list[list[float]], float]]:
        """For each text the logits at every branch, and the labels' mass at the first one."""
        first, *further = self._trie.branches
        logits, state = self._advance(self._prefix, [tail + first.path for tail in tails])
        roots = self._pick(logits, [first.tokens] * len(tails))
        found = [
            ([row], label_mass(row, total)) for row, total in zip(roots, logits.logsumexp(-1).tolist(), strict=True)
        ]
        columns = state.mask.shape[1] + self._longest
        together = max(1, self._budget // (len(tails) * columns))
        for begin in range(0, len(further), together):
            wave = further[begin : begin + together]
            pairs = [(text, branch) for text in range(len(tails)) for branch in wave]
            logits, _ = self._advance(state, [branch.path[len(first.path) :] for _, branch in pairs])
            picked = self._pick(logits, [branch.tokens for _, branch in pairs])
            for (text, _), row in zip(pairs, picked, strict=True):
                found[text][0].append(row)
        return found

    def _advance(self, state: _State, rows: Sequence[tuple[int, ...]]) -> tuple[Any, _State]:
        """Append tokens to copies of a state's rows: the first rows to the first one, and so on, evenly.

        Returns:
            The logits after each row's last token, float32, shape (rows, vocabulary); and the state there.
        """
        torch = self._torch
        width, copies = max(map(len, rows)), len(rows) // len(state.ends)
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=self._device)
        own = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self._device)
        starts = state.ends.repeat_interleave(copies)
        mask = torch.cat([state.mask.repeat_interleave(copies, dim=0), own], dim=1)
        cache = copy.deepcopy(state.cache)
        cache.batch_repeat_interleave(copies)
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=starts[:, None] + (own.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_argument: cache},
        )
        return output.logits[:, -1].float(), _State(cache, mask, starts + own.sum(1))

    def _pick(self, logits: Any, wanted: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """The logits of each row's tokens, fetched from the device at once."""
        width = max(map(len, wanted))
        index = self._torch.tensor([row + row[:1] * (width - len(row)) for row in wanted], device=self._device)
        picked = [row[: len(tokens)] for row, tokens in zip(logits.gather(1, index).tolist(), wanted, strict=True)]
        if not all(math.isfinite(value) for row in picked for value in row):
            raise BackendError(
                "The model gave logits that are not numbers; its weights may be damaged, or too large for "
                "float16 (use dtype='bfloat16' or 'float32')."
            )
        return picked

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Torch without gradients, its failures as errors of smolcls."""
        self._check_open()
        loading.forks.computing_here()
        try:
            with self._torch.inference_mode():
                yield
        except (RuntimeError, MemoryError) as error:
            raise loading.backend_error(error, self._device) from error

    def _check_open(self) -> None:
        if self._model is None:
            raise BackendError("This classifier was closed; make a new one.")

    def _check_context(self, room: int) -> None:
        trained = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if trained is not None and room > trained:
            raise ModelError(
                f"The prompt may take {room} tokens; the model was trained for {trained}. "
                "Lower the task's max_text_bytes."
            )

    def _check_cache(self, room: int) -> None:
        """Refuse a model for which masked padding is not the same as none: one that does not see the whole prompt."""
        for layer in self._prefix.cache.layers:
            kind = type(layer).__name__
            if kind == "DynamicSlidingWindowLayer" and layer.sliding_window > room:
                continue
            if kind != "DynamicLayer":
                raise ModelError(
                    f"The model keeps its past in a {kind}; smolcls needs one with full attention over the prompt of "
                    f"up to {room} tokens, such as SmolLM2."
                )
