"""What a training run is told, and the order of its rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from smolcls import ConfigError
from smolcls.train import TrainConfig
from smolcls.train.config import settle, warmup_steps
from smolcls.train.order import arrange


def test_presets_go_before_defaults_and_given_values_before_both() -> None:
    stable = settle(TrainConfig(preset="stable", dropout=0.3), "trl")
    assert (stable.learning_rate, stable.max_norm, stable.dropout, stable.epochs) == (1e-4, 0.5, 0.3, 3.0)
    small = settle(TrainConfig(preset="low-memory", batch=1), "trl")
    assert (small.batch, small.accumulation, small.checkpointing) == (1, 16, True)
    plain = settle(TrainConfig(), "unsloth")
    assert (plain.learning_rate, plain.batch, plain.accumulation, plain.warmup, plain.max_norm) == (
        2e-4,
        4,
        8,
        100,
        1.0,
    )
    assert (warmup_steps(plain, 5000), warmup_steps(plain, 200)) == (100, 20)


def test_the_order_holds_every_row_as_often_as_asked_and_neighbours_are_alike() -> None:
    lengths = [(7 * index) % 61 + 1 for index in range(400)]
    order = arrange(lengths, epochs=2.5, rows_a_step=8, seed=3)
    assert len(order) == 1000
    assert {order.count(row) for row in range(400)} == {2, 3}
    assert (
        order
        == arrange(lengths, epochs=2.5, rows_a_step=8, seed=3)
        != arrange(lengths, epochs=2.5, rows_a_step=8, seed=4)
    )
    spans = [
        max(step) - min(step) for at in range(0, 1000, 8) if (step := [lengths[row] for row in order[at : at + 8]])
    ]
    assert sum(spans) / len(spans) < 4  # of 60; at random it would be near 50


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "fast"}, "engine must be one of auto, shared, trl, unsloth, linear; found 'fast'"),
        ({"preset": "fast"}, "preset must be one of stable, regularised, low-memory; found 'fast'"),
        ({"rank": 0}, "rank must be a number from 1 to 1024; found 0"),
        ({"rank": 2.5}, "rank must be a whole number; found 2.5"),
        ({"learning_rate": True}, "learning_rate must be a number from 1e-08 to 1; found True"),
        ({"epochs": float("nan")}, "epochs must be a number from 0.01 to 1000; found nan"),
        ({"dropout": "0.1"}, "dropout must be a number from 0 to 0.9; found '0.1'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)  # type: ignore[arg-type]


def test_settings_survive_their_file() -> None:
    settings = settle(TrainConfig(out=Path("runs/a"), test=Path("t.jsonl"), preset="stable", four_bit=False), "trl")
    assert TrainConfig.from_dict(settings.to_dict()) == settings
    with pytest.raises(ConfigError, match="unknown setting 'speed'"):
        TrainConfig.from_dict({"speed": 3})
