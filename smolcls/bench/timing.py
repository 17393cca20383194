"""Timed calls, and what is said of them: percentiles of a round, medians over rounds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Figures = Mapping[str, float | None]


def alternate(count: int, ways: Sequence[Callable[[int], object]], in_turn: int) -> list[list[float]]:
    """Seconds of the calls 0 … count - 1 by each way, which take turns: a machine that grows slower slows all.

    Args:
        count: how many calls each way gets.
        ways: called with the number of the call.
        in_turn: calls of one way before the next one's turn. Where there are several ways, the last call of each
            turn is made before it without the clock: another way has left its own data in the processor's caches.
    """
    seconds: list[list[float]] = [[] for _ in ways]
    for begin in range(0, count, in_turn):
        turn = range(begin, min(begin + in_turn, count))
        for way, taken in zip(ways, seconds, strict=True):
            if len(ways) > 1:
                way(turn[-1])
            for number in turn:
                began = time.perf_counter()
                way(number)
                taken.append(time.perf_counter() - began)
    return seconds


def latencies(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds, by nearest rank: each is the time of one of the calls."""
    ordered = sorted(seconds)
    return {f"p{q}_ms": ordered[math.ceil(q / 100 * len(ordered)) - 1] * 1000.0 for q in (50, 95, 99)}


def rate(count: int, seconds: Sequence[float]) -> float:
    """So many things in all these seconds, per second."""
    return count / math.fsum(seconds)


def speed_ratio(own: Sequence[float], other: Sequence[float]) -> float:
    """How fast the own calls are as a share of the other way's speed: the median over the calls, pair by pair.

    A pair is of one text and one moment, so that neither long texts nor a busy second weigh more than others.
    """
    return statistics.median(there / here for here, there in zip(own, other, strict=True))


def medians(rounds: Sequence[Figures]) -> dict[str, float | None]:
    """Each figure's median over the rounds; None where it is None in all."""
    found: dict[str, float | None] = {}
    for name in rounds[0]:
        values = [value for item in rounds if (value := item[name]) is not None]
        found[name] = statistics.median(values) if values else None
    return found
