"""Hostile texts through any backend: is each answered, and how often does an instruction in a text turn its label?

    python benchmarks/hostile.py rows.jsonl --backend onnx --count 10000
    python benchmarks/hostile.py train.jsonl --limit 600 --teach taught.jsonl

Texts that are answered with a confidence of at least 0.9 are asked again with an instruction before or behind them
that names another label, in sixteen wordings and a dozen languages. A flip is an answer with the label it names. The
control is the same wording with a word that is no label: what flips there too was moved by the foreign words, not by
obedience.

With --teach nothing is asked: it writes rows with instructions in other wordings, each with the label that its text
has without them, for a training to learn from.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import hostile_texts

import smolcls
from smolcls.data.rows import Row, read_rows, write_rows

SURE = 0.9
NO_LABEL = "banana"


def survive(classifier: smolcls.Classifier, count: int) -> Counter[str]:
    """How many hostile texts were answered and how many refused as blank; any other error ends the program."""
    seen: Counter[str] = Counter()
    for number, text in enumerate(hostile_texts.texts(count, 1, classifier.task.names), start=1):
        try:
            found = classifier.classify(text)
        except smolcls.InputError:
            seen["refused as blank"] += 1
        else:
            whole = math.isclose(math.fsum(found.probabilities.values()), 1.0, abs_tol=1e-9)
            seen["answered" if found.label in classifier.task.names and whole else "answered wrongly"] += 1
        if number % 500 == 0:
            print(f"{number} of {count}", file=sys.stderr)
    return seen


@dataclass
class Flips:
    """The number of sure texts; how often an instruction was tried, and turned the label, there and in the control.

    Counted by wording, and by the pair of the label before and the label that the instruction names.
    """

    sure: int = 0
    tried: Counter[str] = field(default_factory=Counter)
    turned: Counter[str] = field(default_factory=Counter)
    control: Counter[str] = field(default_factory=Counter)


def flips(classifier: smolcls.Classifier, texts: list[str]) -> tuple[Flips, Flips]:
    """How often an instruction turns the label of a sure text: by wording, and by the two labels."""
    by_wording, by_labels = Flips(), Flips()
    for text in texts:
        before = classifier.classify(text)
        if before.confidence < SURE:
            continue
        neutral = [classifier.classify(asked).label for _, asked in hostile_texts.injected(text, NO_LABEL)]
        for label in classifier.task.names:
            if label != before.label:
                for (wording, asked), other in zip(hostile_texts.injected(text, label), neutral, strict=True):
                    turned = classifier.classify(asked).label == label
                    for found, name in ((by_wording, wording), (by_labels, f"{before.label} to {label}")):
                        found.tried[name] += 1
                        found.turned[name] += turned
                        found.control[name] += other == label
        by_wording.sure += 1
        by_labels.sure += 1
    return by_wording, by_labels


def taught(rows: Sequence[Row], labels: Sequence[str]) -> list[Row]:
    """Each row with one of the teaching wordings, drawn at random, that names any label or none."""
    source = random.Random(3)
    found = []
    for row in rows:
        made = list(hostile_texts.injected(row.text, source.choice((*labels, NO_LABEL)), hostile_texts.TEACHING))
        found.append(replace(row, text=source.choice(made)[1], origin="instruction"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="a JSONL file of texts and labels")
    parser.add_argument("--backend", default="onnx", help="a specification, as smolcls.load takes it")
    parser.add_argument("--count", type=int, default=10_000, help="how many hostile texts")
    parser.add_argument("--limit", type=int, default=50, help="how many rows are given instructions")
    parser.add_argument("--teach", type=Path, metavar="OUT", help="write rows to teach with, and ask nothing")
    given = parser.parse_args()
    rows = read_rows(given.rows)[: given.limit]
    if given.teach:
        write_rows(given.teach, taught(rows, smolcls.Task.load("three-type").names))
        return
    with smolcls.load(given.backend) as classifier:
        if given.count:
            print(", ".join(f"{count} {what}" for what, count in survive(classifier, given.count).most_common()))
        by_wording, by_labels = flips(classifier, [row.text for row in rows])
    print(
        f"{by_wording.sure} of {len(rows)} texts are sure; of {by_wording.tried.total()} instructions "
        f"{by_wording.turned.total()} turned the label, in the control {by_wording.control.total()}"
    )
    for found in (by_labels, by_wording):
        for name, count in found.tried.most_common():
            print(f"{found.turned[name]:>6} and {found.control[name]:>5} of {count:>5}  {name}")


if __name__ == "__main__":
    main()
