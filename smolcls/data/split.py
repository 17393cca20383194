"""Rows into train, validation and test: whole families, drawn by a hash, so that the draw outlives new rows."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from smolcls.classifier import check_fraction
from smolcls.data import near
from smolcls.data.rows import SPLITS, Row
from smolcls.errors import ConfigError

_SEEDS_TRIED = 100


@dataclass(frozen=True, slots=True)
class Split:
    """The rows of each part, in their old order, and the seed that drew them."""

    parts: Mapping[str, Sequence[Row]]
    seed: int


def split(rows: Sequence[Row], *, validation: float = 0.06, test: float = 0.02, seed: int | None = None) -> Split:
    """Split rows by family, stratified by label.

    A family is drawn by a hash of its name and the seed, and by nothing else: rows of new families move no
    old one, and the order of the rows does not matter. Near-copies count as one family whatever their rows
    say; it has the name of its first row's, so that new rows are best put at the end.

    A draw that looks at one family alone gives each label its share up to chance. So a first split tries a
    hundred seeds and takes the one whose parts have the labels' shares most nearly; later ones are given it.

    Args:
        rows: labelled rows.
        validation, test: shares of the rows, 0 to 1, together below 1; the rest is train.
        seed: what a former split said; None finds one.

    Raises:
        ConfigError: shares that leave nothing for training.
    """
    for name, share in (("validation", validation), ("test", test)):
        check_fraction(share, name)
    if validation + test >= 1.0:
        raise ConfigError(
            f"validation and test must leave rows for training: together below 1; found {validation:g} + {test:g}."
        )
    shares = {"test": test, "validation": validation}
    names = families(rows)
    if seed is None:
        sizes = Counter(zip(names, (row.label for row in rows), strict=True))
        seed = min(range(_SEEDS_TRIED), key=lambda tried: _misfit(sizes, shares, tried))
    part_of = {name: _draw(name, shares, seed) for name in set(names)}
    parts: dict[str, list[Row]] = {part: [] for part in SPLITS}
    for name, row in zip(names, rows, strict=True):
        parts[part_of[name]].append(row)
    return Split(parts, seed)


def families(rows: Sequence[Row]) -> list[str]:
    """Each row's family: the one it names or its own, joined with those of its near-copies."""
    own = [own_family(row) for row in rows]
    names = list(dict.fromkeys(own))
    number = {name: position for position, name in enumerate(names)}
    joined = near.Joined(len(names))
    groups = [number[name] for name in own]
    for _ in near.links([row.text for row in rows], groups, joined):
        pass  # each link joins its families
    return [names[joined.root(group)] for group in groups]


def own_family(row: Row) -> str:
    """The family that a row names, or one of its own."""
    return row.family or f"text:{near.normalise(row.text)}"


def _draw(family: str, shares: Mapping[str, float], seed: int) -> str:
    digest = hashlib.sha256(f"{seed}\x1f{family}".encode("utf-8", "surrogatepass")).digest()
    drawn = int.from_bytes(digest[:8]) / 2.0**64
    for part, share in shares.items():
        if drawn < share:
            return part
        drawn -= share
    return "train"


def _misfit(sizes: Mapping[tuple[str, str], int], shares: Mapping[str, float], seed: int) -> float:
    """How far the parts are from the labels' shares: the sum of (found - wanted)² / wanted, as in chi-squared."""
    totals: Counter[str] = Counter()
    found: Counter[tuple[str, str]] = Counter()
    drawn: dict[str, str] = {}
    for (family, label), count in sizes.items():
        part = drawn[family] if family in drawn else drawn.setdefault(family, _draw(family, shares, seed))
        totals[label] += count
        found[part, label] += count
    wanted = {(part, label): share * total for part, share in shares.items() for label, total in totals.items()}
    return math.fsum((found[cell] - rows) ** 2 / rows for cell, rows in wanted.items() if rows > 0)
