"""Hostile texts through any backend: is each answered, and how often does an instruction in a text turn its label?

    python benchmarks/hostile.py rows.jsonl --backend llamacpp --count 10000

Texts that are answered with a confidence of at least 0.9 are asked again with an instruction before or behind them
that names another label, in sixteen wordings and a dozen languages. A flip is an answer with the label it names.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import hostile_texts

import smolcls
from smolcls.data.rows import read_rows

SURE = 0.9


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


def flips(classifier: smolcls.Classifier, texts: list[str]) -> tuple[int, Counter[str], Counter[str]]:
    """The number of sure texts; by instruction how often it was tried, and how often it turned the label to its own."""
    sure, tried, turned = 0, Counter[str](), Counter[str]()
    for text in texts:
        before = classifier.classify(text)
        if before.confidence < SURE:
            continue
        sure += 1
        for label in classifier.task.names:
            if label != before.label:
                for wording, asked in hostile_texts.injected(text, label):
                    tried[wording] += 1
                    turned[wording] += classifier.classify(asked).label == label
    return sure, tried, turned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="a JSONL file of texts and labels")
    parser.add_argument("--backend", default="llamacpp", help="a specification, as smolcls.load takes it")
    parser.add_argument("--count", type=int, default=10_000, help="how many hostile texts")
    parser.add_argument("--limit", type=int, default=50, help="how many rows are given instructions")
    given = parser.parse_args()
    texts = [row.text for row in read_rows(given.rows)[: given.limit]]
    with smolcls.load(given.backend) as classifier:
        print(", ".join(f"{count} {what}" for what, count in survive(classifier, given.count).most_common()))
        sure, tried, turned = flips(classifier, texts)
    print(f"{sure} of {len(texts)} texts are sure; {turned.total()} of {tried.total()} instructions turned the label")
    for wording, count in turned.most_common():
        print(f"{count:>6} of {tried[wording]}  {wording}")


if __name__ == "__main__":
    main()
