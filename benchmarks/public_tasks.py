"""Any label set: the same rows, the same machine, one method after the other, on two public tasks.

    python benchmarks/public_tasks.py banking77 FOLDER [--rows-per-label 10] [--methods linear,minilm] [--out DIR]
    python benchmarks/public_tasks.py clinc150 FOLDER

FOLDER holds the task's rows as JSONL, `{"text", "label"}` a line: `train.jsonl` and `test.jsonl`; where there is no
`validation.jsonl`, a tenth of the training rows is held out. CLINC150 also has `oos_test.jsonl`, texts of no label.
Held-out rows choose temperatures, checkpoints and the chain's thresholds, with few training rows too.

Each method trains and answers in a process of its own, and leaves its figures as JSON in DIR; those that are there are
not made again, and an interrupted fine-tuning goes on. `smolcls` answers in the quantisation that training chooses,
Q8_0 on llama.cpp; `q4_k_m` is the same model in that one, `onnx` on ONNX Runtime. `chain` is made of `linear` and
`onnx`, whose trainings come first. `codes` is `smolcls` with two capitals, one token, in each label's place.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import random
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolcls import Classifier, ConfidenceRouter, Prediction, Stage, Task, load
from smolcls.data.rows import Row, read_rows, write_rows

METHODS = ("linear", "minilm", "smolcls", "q4_k_m", "onnx", "codes", "setfit", "chain")
FINE_TUNED = ("smolcls", "codes")
ONNX_MODEL = Path("smolcls", "onnx", "model.onnx")
INSTRUCTIONS = {
    "banking77": "Name the intent of the customer's message.",
    "clinc150": "Name the intent of the message.",
}
# CLINC150's many rows are learned by heart in three passes: a little dropout and larger steps hold out better.
RECIPES: dict[str, dict[str, Any]] = {"banking77": {}, "clinc150": {"learning_rate": 8e-4, "dropout": 0.1}}
HELD_OUT = 0.1
COVERAGE = 0.95
WATCHED = 1000  # held-out rows that choose a fine-tuning's checkpoint and temperature
SINGLE_CALLS = 200
BATCH = 256
SEED = 7


@dataclass(frozen=True)
class Data:
    """The rows of a task; `outside` has texts that belong to no label."""

    task: Task
    train: list[Row]
    held: list[Row]
    test: list[Row]
    outside: list[Row]


def read(name: str, folder: Path, rows_per_label: int | None) -> Data:
    """The task, made of the labels of its training rows, which are drawn label by label."""
    found = read_rows(folder / "train.jsonl")
    names = sorted({row.label for row in found})
    held: list[Row] = []
    if (folder / "validation.jsonl").is_file():
        held = read_rows(folder / "validation.jsonl")
    else:
        found, held = _draw(found, lambda rows: max(1, round(len(rows) * (1.0 - HELD_OUT))))
    if rows_per_label is not None:
        found, _ = _draw(found, lambda rows: rows_per_label)
    outside = folder / "oos_test.jsonl"
    return Data(
        # Without the names in it: they would be most of every prompt, and training teaches them.
        Task(names, name=name, instruction=INSTRUCTIONS[name]),
        found,
        held,
        read_rows(folder / "test.jsonl"),
        read_rows(outside) if outside.is_file() else [],
    )


def _draw(rows: Sequence[Row], count: Callable[[list[Row]], int]) -> tuple[list[Row], list[Row]]:
    """For each label so many rows, and the rest."""
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[row.label].append(row)
    drawn, rest = [], []
    for label in sorted(by_label):
        own = by_label[label]
        random.Random(f"{SEED} {label}").shuffle(own)
        drawn += own[: count(own)]
        rest += own[count(own) :]
    return drawn, rest


def coded(data: Data) -> Data:
    """The same rows with a code of one token in the place of each label's name."""
    from smolcls.build import bundled_base
    from smolcls.train.base import read_tokenizer

    vocabulary = read_tokenizer(bundled_base()).get_vocab()
    pairs = sorted((token for token in vocabulary if re.fullmatch("[A-Z]{2}", token)), key=vocabulary.__getitem__)
    codes = dict(zip(data.task.names, pairs, strict=False))
    train, held, test = (
        [Row(row.text, codes[row.label]) for row in rows] for rows in (data.train, data.held, data.test)
    )
    task = Task(list(codes.values()), name=data.task.name, instruction=data.task.instruction)
    return Data(task, train, held, test, data.outside)


def fine_tuned(data: Data, out: Path, name: str) -> Classifier:
    """SmolLM2-135M, fine-tuned by `smolcls train`, in its default quantisation on llama.cpp."""
    from smolcls.train import TrainConfig, train

    rows = out / f"{name}-rows"
    # Watching a training takes the time of a few hundred steps where each time thousands of rows are scored.
    watched = random.Random(SEED).sample(data.held, min(WATCHED, len(data.held)))
    for split, part in (("train", data.train), ("held", watched)):
        write_rows(rows / f"{split}.jsonl", part)
    held, folder = rows / "held.jsonl", out / name
    # Many labels need more passes than a few: each has but a hundred rows. With a handful of rows a label, more yet.
    epochs = 3.0 if len(data.train) > 2000 else 10.0
    config = TrainConfig(
        data=rows / "train.jsonl", validation=held, test=held, out=folder, epochs=epochs, evaluations=3, hours=12.0,
        seed=SEED, **RECIPES[data.task.name],
    )  # fmt: skip
    run = train(config, task=data.task, resume=(folder / "config.json").is_file())
    return load(f"llamacpp:{run.model}", task=data.task)


def requantised(data: Data, out: Path) -> Classifier:
    """The fine-tuned model in Q4_K_M, with a temperature of its own."""
    import baselines  # beside this file

    from smolcls.export.quantize import quantise

    [source] = needed(out / "smolcls" / "model-f16.gguf")
    model = out / "q4_k_m" / "model.gguf"
    model.parent.mkdir(exist_ok=True)
    quantise(source, model, "Q4_K_M")
    return baselines.calibrated(load(f"llamacpp:{model}", task=data.task), data.held)


def chain(data: Data, out: Path) -> Classifier:
    """The n-grams where they are sure enough, else the fine-tuned model with them: the held-out rows choose both."""
    linear, model = needed(out / "linear" / "model.safetensors", out / ONNX_MODEL)
    router = ConfidenceRouter(
        [Stage(f"linear:{linear}", name="linear"), Stage(f"onnx:{model}", name="smolcls")], task=data.task
    )
    return router.fit(data.held, max_latency_ms=1e6)  # without a limit: the most accurate


def needed(*files: Path) -> tuple[Path, ...]:
    """What earlier methods left."""
    for path in files:
        if not path.is_file():
            raise SystemExit(f"This needs {path}; run the methods linear and smolcls first.")
    return files


def make(method: str, data: Data, out: Path) -> Classifier:
    """Train a method."""
    if method in FINE_TUNED:
        return fine_tuned(data, out, method)
    if method == "q4_k_m":
        return requantised(data, out)
    if method == "onnx":
        [model] = needed(out / ONNX_MODEL)
        return load(f"onnx:{model}", task=data.task)
    if method == "chain":
        return chain(data, out)
    import baselines

    trained: Classifier = baselines.BASELINES[method](data.task, data.train, data.held, out / method)
    return trained


def measure(method: str, data: Data, out: Path) -> None:
    """Train a method, let it answer, and write its figures."""
    from smolcls import metrics

    data = coded(data) if method == "codes" else data
    resumed = method in FINE_TUNED and (out / method / "config.json").is_file()
    began = time.perf_counter()
    classifier = make(method, data, out)
    took = time.perf_counter() - began
    with classifier:
        texts = [row.text for row in data.test]
        classifier.classify(texts[0])
        began = time.perf_counter()
        answers = classified(classifier, texts)
        speed = len(texts) / (time.perf_counter() - began)
        found = metrics.measure(
            data.task.names,
            [list(answer.probabilities.values()) for answer in answers],
            [data.task.names.index(row.label) for row in data.test],
        )
        content = {
            "method": method, "task": data.task.name, "labels": len(data.task.names), "train_rows": len(data.train),
            "held_out_rows": len(data.held), "test_rows": len(data.test), "accuracy": found.accuracy,
            "accuracy_interval": [found.accuracy_interval.low, found.accuracy_interval.high],
            "macro_f1": found.macro_f1, "ece": found.ece, "nll": found.nll, "sure_errors": found.sure_errors,
            "training_seconds": took, "resumed": resumed, "texts_per_second": speed,
            **latencies(classifier, random.Random(SEED).sample(texts, min(SINGLE_CALLS, len(texts)))),
            "out_of_scope": out_of_scope(classifier, data, answers) if data.outside else {},
            "fit": fit_of(classifier), "peak_memory_mb": peak_memory(),
        }  # fmt: skip
    target = out / f"{method}.json"
    target.with_suffix(".part").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    target.with_suffix(".part").replace(target)


def classified(classifier: Classifier, texts: Sequence[str]) -> list[Prediction]:
    """The answers to many texts, a batch at a time."""
    parts = (texts[first : first + BATCH] for first in range(0, len(texts), BATCH))
    return [answer for part in parts for answer in classifier.classify_batch(part)]


def latencies(classifier: Classifier, texts: Sequence[str]) -> dict[str, float]:
    """Milliseconds of a text asked for alone."""
    taken = []
    for text in texts:
        began = time.perf_counter()
        classifier.classify(text)
        taken.append((time.perf_counter() - began) * 1000.0)
    quantiles = statistics.quantiles(taken, n=20) if len(taken) > 1 else taken
    return {"p50_ms": statistics.median(taken), "p95_ms": quantiles[-1], "mean_ms": statistics.fmean(taken)}


def out_of_scope(classifier: Classifier, data: Data, inside: Sequence[Prediction]) -> dict[str, dict[str, float]]:
    """How well each signal tells texts of no label from the test's, higher values being those of a label.

    `auroc` is the area under the ROC curve; `recall` the share of texts of no label that is turned away where 95 %
    of the test's are kept. That limit is set on the test's own rows: it measures a ranking, not a chosen threshold.
    """
    import numpy as np
    from sklearn.metrics import roc_auc_score

    texts, others = [row.text for row in data.test], [row.text for row in data.outside]
    outside = classified(classifier, others)
    signals: dict[str, tuple[list[float], list[float]]] = {
        "confidence": ([item.confidence for item in inside], [item.confidence for item in outside])
    }
    masses = [[item.label_mass for item in part if item.label_mass is not None] for part in (inside, outside)]
    if [len(masses[0]), len(masses[1])] == [len(inside), len(outside)]:
        signals["label mass"] = (masses[0], masses[1])
    for name, distance in distances(classifier, data).items():
        signals[name] = ([-value for value in distance(texts)], [-value for value in distance(others)])
    found = {}
    for name, (kept, turned) in signals.items():
        truth = [1] * len(kept) + [0] * len(turned)
        limit = float(np.quantile(kept, 1.0 - COVERAGE, method="lower"))
        recall = sum(value < limit for value in turned) / len(turned)
        found[name] = {"auroc": float(roc_auc_score(truth, [*kept, *turned])), "recall": recall}
    return found


def distances(classifier: Classifier, data: Data) -> Mapping[str, Callable[[Sequence[str]], list[float]]]:
    """Distances to the training rows: of n-grams, and of vectors where the method has them."""
    from smolcls.novelty import Novelty

    novelty = Novelty().fit(row.text for row in data.train)
    own = getattr(classifier, "distance", None)
    return {"distance of n-grams": novelty.score, **({} if own is None else {"distance of vectors": own})}


def fit_of(classifier: Classifier) -> dict[str, Any]:
    """What was chosen on the held-out rows."""
    if isinstance(classifier, ConfidenceRouter) and classifier.chain_fit is not None:
        found = classifier.chain_fit
        return {"stages": found.stages, "thresholds": found.thresholds, "pools": found.pools, "shares": found.shares}
    head, calibration = getattr(classifier, "head", None), classifier.calibration
    chosen = {} if head is None else {"strength": head.C}
    return {**chosen, "temperature": None if calibration is None else calibration.temperature}


def peak_memory() -> float:
    """The most memory that this process held, in MB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000.0


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The figures as a table in Markdown, and one of the signals for texts of no label."""
    lines = [
        "| method | accuracy | ECE | training | peak memory | one call (median) | texts/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for item in results:
        lines.append(
            f"| {item['method']} | {item['accuracy']:.2%} | {item['ece']:.3f} | {item['training_seconds']:.0f} s"
            f"{' (resumed)' if item['resumed'] else ''} | {item['peak_memory_mb']:.0f} MB | {item['p50_ms']:.2f} ms "
            f"| {item['texts_per_second']:.0f} |"
        )
    signals = [(item["method"], name, found) for item in results for name, found in item["out_of_scope"].items()]
    if signals:
        lines += ["", f"| method | signal | AUROC | recall at {COVERAGE:.0%} coverage |", "|---|---|---|---|"]
    lines += [
        f"| {method} | {name} | {found['auroc']:.3f} | {found['recall']:.1%} |" for method, name, found in signals
    ]
    return "\n".join(lines)


def main() -> None:
    """Make the figures that are not there, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(INSTRUCTIONS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows-per-label", type=int)
    parser.add_argument("--methods", default=",".join(METHODS), help="some of %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs/public"))
    given = parser.parse_args()
    methods = given.methods.split(",")
    if unknown := [name for name in methods if name not in METHODS]:
        parser.error(f"no method {unknown[0]!r}; there are {', '.join(METHODS)}")
    out = given.out / f"{given.task}-{given.rows_per_label or 'full'}"
    out.mkdir(parents=True, exist_ok=True)
    data = functools.cache(lambda: read(given.task, given.folder, given.rows_per_label))
    for method in methods:
        if not (out / f"{method}.json").is_file():
            print(f"{method} …", file=sys.stderr, flush=True)
            process = multiprocessing.get_context("spawn").Process(target=measure, args=(method, data(), out))
            process.start()
            process.join()
            if process.exitcode:
                print(f"{method} failed", file=sys.stderr)
    done = [path for name in methods if (path := out / f"{name}.json").is_file()]
    print(table([json.loads(path.read_text(encoding="utf-8")) for path in done]))
    if len(done) < len(methods):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
