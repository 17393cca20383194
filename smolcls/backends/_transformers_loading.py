"""Loading for the transformers backend: a folder, a Hub id or a GGUF file becomes a model and its tokenizer.

This file knows where weights come from, what can be wrong with them, and which of transformers' errors says
so; `transformers.py` beside it knows how to score. Nothing is run from a model's repository and no pickle is
read: `trust_remote_code` stays off and weights are safetensors or GGUF.

The tokenizer is read from `tokenizer.json` as it stands. transformers' own wrapper rebuilds it for some classes
(`GPT2Tokenizer`, which SmolLM2 names) and drops the splitting of digits: numbers would get other tokens.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import os
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolcls import errors, native
from smolcls.errors import BackendError, ConfigError, MissingExtraError, ModelError, require
from smolcls.files import user_path
from smolcls.scan import scan

PURPOSE = "The transformers backend"
_EXTRA = "transformers"
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_EXAMPLE = "HuggingFaceTB/SmolLM2-360M-Instruct"
_FORWARD = ("input_ids", "attention_mask", "position_ids", "logits_to_keep")
_OUT_OF_MEMORY = re.compile(r"out of memory|allocate memory|not enough memory", re.IGNORECASE)

_lock = threading.Lock()  # loading changes transformers' global verbosity for a moment
forks = native.ForkGuard("torch")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in evaluation mode on its device, its tokenizer, and the name of its cache argument."""

    model: Any
    tokenizer: Any
    cache_argument: str


def load(source: str | Path, device: Any, dtype: Any) -> Loaded:
    """Load a model and its tokenizer, silently.

    Args:
        source: a folder that transformers saved, a GGUF file, or a Hub id.
        device, dtype: a torch device and dtype, as `place` gives them.

    Raises:
        ModelError: it is missing, damaged, incomplete, or of a kind that cannot be scored.
        MissingExtraError: a package that this model needs is not installed.
        BackendError: memory is too small for it.
    """
    transformers = require("transformers", extra=_EXTRA, purpose=PURPOSE)
    path = user_path(source)
    with _lock, _quiet(transformers), _mapped(source, device):
        if os.path.isdir(path):  # Path's own raise for a name that is too long
            _check_folder(path)
            tokenizer = _read_tokenizer(path / "tokenizer.json")
            model, report = _weights(transformers, str(path), dtype, use_safetensors=True, local_files_only=True)
        elif os.path.exists(path) or path.suffix == ".gguf":
            model, report, tokenizer = _load_gguf(transformers, path, dtype)
        elif _HUB_ID.fullmatch(str(source)):
            hub = require("huggingface_hub", extra=_EXTRA, purpose=PURPOSE)
            tokenizer = _read_tokenizer(Path(hub.hf_hub_download(str(source), "tokenizer.json")))
            model, report = _weights(transformers, str(source), dtype, use_safetensors=True)
        else:
            raise ModelError(
                f"There is no model {str(source)!r}: expected a folder that transformers saved, a GGUF file, or a Hub "
                f"id such as {_EXAMPLE}."
            )
        model = model.to(device).eval()
        _widen_head(model)
    _check_whole(source, model, tokenizer, report)
    return Loaded(model, tokenizer, _cache_argument(source, model))


def place(torch: Any, device: Any, dtype: Any) -> tuple[Any, Any]:
    """The torch device and dtype to use; None is CUDA in bfloat16 where there is one, else the CPU in float32.

    Raises:
        ConfigError: no such device or dtype.
        BackendUnavailableError: CUDA was asked for and is not there.
    """
    try:
        chosen = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device must be a torch device such as 'cpu' or 'cuda:1'; found {device!r}.") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise errors.BackendUnavailableError(
            f"device={str(device)!r} was asked for; torch finds {torch.cuda.device_count()} CUDA devices. "
            "Use device='cpu', or install a driver and a torch build for CUDA."
        )
    if dtype is None:
        return chosen, torch.bfloat16 if chosen.type == "cuda" else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}; found {dtype!r}.")
    return chosen, getattr(torch, name)


def backend_error(error: BaseException, device: Any) -> BackendError:
    """What torch's failure on `device` means, and for want of memory what mends it."""
    if is_out_of_memory(error):
        other = "device='cpu'" if device.type != "cpu" else "dtype='bfloat16'"
        return BackendError(
            f"The memory of device {str(device)!r} is too small: {_line(error)}. Close other programs that use it, try "
            f"{other}, or take a smaller model."
        )
    return BackendError(f"torch could not run the model on device {str(device)!r}: {_line(error)}.")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory; on the CPU only the message of its RuntimeError says so."""
    return isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


def _check_folder(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds a PEFT adapter, not a whole model. Merge it into its base first and name the folder of "
            "the merged model (`smolcls train` leaves one beside the adapter)."
        )
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder} has no {name}: expected a model folder that transformers saved, with config.json, "
                "tokenizer.json and safetensors weights."
            )


def _read_tokenizer(path: Path) -> Any:
    tokenizers = require("tokenizers", extra=_EXTRA, purpose=PURPOSE)
    # from_buffer raises a ValueError for a damaged file; from_file and from_str a bare Exception.
    return tokenizers.Tokenizer.from_buffer(path.read_bytes())


def _weights(transformers: Any, name: str, dtype: Any, **options: Any) -> Any:
    """The model, and transformers' report of how its weights were found."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        name, dtype=dtype, trust_remote_code=False, output_loading_info=True, **options
    )


def _load_gguf(transformers: Any, path: Path, dtype: Any) -> tuple[Any, dict[str, Any], Any]:
    metadata = scan(path).metadata
    for package in ("gguf", "accelerate"):
        require(package, extra=_EXTRA, purpose="Loading a GGUF file through transformers")
    where = {"gguf_file": path.name, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), **where).backend_tokenizer
    _mend_splitting(path, str(metadata.get("tokenizer.ggml.pre", "default")), tokenizer)
    config = transformers.GgufConfig(gguf_file=path.name, dequantize=True)
    return *_weights(transformers, str(path.parent), dtype, quantization_config=config, **where), tokenizer


def _mend_splitting(path: Path, named: str, tokenizer: Any) -> None:
    """Put SmolLM2's digit splitting back; refuse a splitting that transformers does not know and replaced."""
    splitters = require("tokenizers", extra=_EXTRA, purpose=PURPOSE).pre_tokenizers
    if named == "smollm":
        tokenizer.pre_tokenizer = splitters.Sequence(
            [splitters.Digits(individual_digits=True), splitters.ByteLevel(add_prefix_space=False)]
        )
    elif named != "gpt-2" and isinstance(tokenizer.pre_tokenizer, splitters.ByteLevel):
        raise ModelError(
            f"{path} splits texts by the pre-tokenizer {named!r}, which transformers does not know from a GGUF file; "
            "it would give other tokens. Name the model's folder or Hub id instead, or use the llamacpp backend."
        )


def _widen_head(model: Any) -> None:
    """Compute the logits in float32 where the model is in 16 bit.

    A bfloat16 logit near 20 comes in steps of 0.125: label probabilities would come in coarse steps too, and
    labels would tie. The copy costs 4 bytes a weight of the output matrix, and the hidden state is one row a text.
    """
    head = model.get_output_embeddings()
    if head is None or model.dtype.itemsize >= 4:
        return
    wide = copy.deepcopy(head).float()
    wide.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(),))
    model.set_output_embeddings(wide)


def _check_whole(source: str | Path, model: Any, tokenizer: Any, report: dict[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers fills them with random numbers and says so in a warning.
        raise ModelError(f"{source} lacks {len(missing)} of the model's weights, such as {missing[0]}. Save it again.")
    known, rows = tokenizer.get_vocab_size(), model.get_input_embeddings().weight.shape[0]
    if known > rows:
        raise ModelError(f"{source}: its tokenizer has {known} tokens, its model {rows}; they do not belong together.")


def _cache_argument(source: str | Path, model: Any) -> str:
    arguments = inspect.signature(model.forward).parameters
    # The old name is that of transformers 5.17, the new one that of 5.24; to be dropped with support for the old.
    name = "cache" if "cache" in arguments else "past_key_values"
    lacking = [argument for argument in (*_FORWARD, name) if argument not in arguments]
    if lacking:
        raise ModelError(
            f"{source} is a {type(model).__name__}, which takes no {lacking[0]}; smolcls needs a decoder with a cache, "
            "such as SmolLM2."
        )
    return name


@contextlib.contextmanager
def _mapped(source: str | Path, device: Any) -> Iterator[None]:
    """Errors of transformers and of the libraries below it as those of smolcls."""
    damaged = require("safetensors", extra=_EXTRA, purpose=PURPOSE).SafetensorError
    invalid = require("huggingface_hub.errors", extra=_EXTRA, purpose=PURPOSE).StrictDataclassError
    try:
        yield
    except errors.SmolclsError:
        raise
    except ImportError as error:
        raise MissingExtraError(f"{source} needs a package that is not installed: {_line(error)}.") from error
    except (OSError, ValueError, RuntimeError, MemoryError, LookupError, TypeError, damaged, invalid) as error:
        if is_out_of_memory(error):
            raise backend_error(error, device) from error
        raise ModelError(
            f"transformers cannot load {source}: {_line(error)}. Expected a folder that transformers saved, a GGUF "
            f"file, or a Hub id such as {_EXAMPLE}."
        ) from error


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and no warnings while loading; what was set before is set again."""
    hub = require("huggingface_hub.utils", extra=_EXTRA, purpose=PURPOSE)
    own = transformers.utils.logging
    levels = [(log, log.get_verbosity()) for log in (own, hub.logging)]
    bars, hub_bars = own.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    with warnings.catch_warnings(), _without_gguf_bar():
        warnings.simplefilter("ignore")
        for log, _ in levels:
            log.set_verbosity(log.CRITICAL)
        own.disable_progress_bar()
        try:
            yield
        finally:
            if bars:
                own.enable_progress_bar()
            (hub.enable_progress_bars if hub_bars else hub.disable_progress_bars)()
            for log, level in levels:
                log.set_verbosity(level)


@contextlib.contextmanager
def _without_gguf_bar() -> Iterator[None]:
    """No bar of the loader that draws it with tqdm itself, past transformers' own switch; until that loader is gone."""
    try:
        loader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    except ModuleNotFoundError:
        yield
        return
    bar, loader.tqdm = loader.tqdm, lambda items, **_: items
    try:
        yield
    finally:
        loader.tqdm = bar


def _line(error: BaseException) -> str:
    """The first line of a foreign message, which may run over a page."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
