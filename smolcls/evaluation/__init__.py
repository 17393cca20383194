"""Classifiers over labelled rows: what they answer, how fast, where they fail, and what must hold.

`run` lets a classifier answer; `slices`, `compare` and `gates` look at the answers. How it is shown is `report`'s.
"""

from smolcls.evaluation.compare import Change, Disagreement, Pair, changes, disagreements, pairs, read_answers
from smolcls.evaluation.gates import Gate
from smolcls.evaluation.run import Answer, Evaluation, Latency, evaluate, majority
from smolcls.evaluation.slices import Slice, slices

__all__ = [
    "Answer",
    "Change",
    "Disagreement",
    "Evaluation",
    "Gate",
    "Latency",
    "Pair",
    "Slice",
    "changes",
    "disagreements",
    "evaluate",
    "majority",
    "pairs",
    "read_answers",
    "slices",
]
