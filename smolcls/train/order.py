"""The order in which rows are trained on, for a whole run at once.

It depends on the rows' lengths and the seed alone, not on any generator's state: a run that is killed and
resumed sees the rows that it would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

_STEPS_A_CHUNK = 50


def arrange(lengths: Sequence[int], *, epochs: float, rows_a_step: int, seed: int) -> list[int]:
    """Indices of the rows in the order of training, each one about `epochs` times.

    Rows are shuffled; then, within chunks of 50 steps, those of like length come together, for padding is
    cost, and the steps of the chunk are shuffled again.

    Args:
        lengths: tokens of each row.
        rows_a_step: rows of one optimiser step; steps of the result begin at its multiples.
    """
    generator = random.Random(seed)
    wanted = max(1, round(len(lengths) * epochs))
    shuffled: list[int] = []
    while len(shuffled) < wanted:
        shuffled += generator.sample(range(len(lengths)), len(lengths))
    del shuffled[wanted:]
    ordered: list[int] = []
    chunk = rows_a_step * _STEPS_A_CHUNK
    for begin in range(0, wanted, chunk):
        rows = sorted(shuffled[begin : begin + chunk], key=lambda row: lengths[row], reverse=True)
        steps = [rows[at : at + rows_a_step] for at in range(0, len(rows), rows_a_step)]
        # A last step that is not full stays last, or every later one would straddle two groups of like length.
        full = [step for step in steps if len(step) == rows_a_step]
        generator.shuffle(full)
        ordered += [row for step in (*full, *steps[len(full) :]) for row in step]
    return ordered
