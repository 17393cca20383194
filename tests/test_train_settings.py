"""What a training run is told, and the order of its rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from smolcls import ConfigError
from smolcls.export.layers import name_ranges, read_ranges, replication
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
        ({"precision": "float16"}, "precision must be one of auto, float32, bfloat16; found 'float16'"),
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


@pytest.mark.parametrize(
    ("keep", "ranges", "named"),
    [
        ("20", [(0, 20)], "0-19"),
        (20, [(0, 20)], "0-19"),
        ("1", [(0, 1)], "0-0"),
        ("0-17,28-29", [(0, 18), (28, 30)], "0-17,28-29"),
        ("0, 2, 4-4", [(0, 1), (2, 3), (4, 5)], "0-0,2-2,4-4"),
        ("5-5", [(5, 6)], "5-5"),
    ],
)
def test_counts_and_layers_are_read_and_named(keep: str | int, ranges: list[tuple[int, int]], named: str) -> None:
    assert read_ranges(keep) == ranges
    assert name_ranges(ranges) == named
    assert read_ranges(named) == ranges


@pytest.mark.parametrize(
    "keep",
    [
        "",
        "0",
        0,
        -3,
        2.0,
        True,
        "x",
        "-",
        "3-",
        "-3",
        "5-3",
        "0-4,3-6",
        "4-5,0-1",
        "1,1",
        "1,,2",
        "1-2-3",
        "٣",
        "9" * 5,
    ],
)
def test_what_names_no_layers_or_layers_that_do_not_rise_is_refused(keep: str | int) -> None:
    with pytest.raises(ConfigError) as caught:
        read_ranges(keep)
    assert str(caught.value) == (
        "keep_layers must be how many of the first layers are kept, such as 20, or rising layers, such as 0-17,28-29; "
        f"found {keep!r}."
    )


def test_layers_that_the_base_has_not_are_refused() -> None:
    assert replication(None, 30) is None
    assert replication("0-17,28-29", 30) == [(0, 18), (28, 30), (30, 30)]
    assert replication(30, 30) == [(0, 30), (30, 30)]
    with pytest.raises(ConfigError, match="keep_layers '31' needs a base of 31 layers or more; this one has 30"):
        replication("31", 30)
    with pytest.raises(ConfigError, match="keep_layers '0,30-30' needs a base of 31 layers or more; this one has 30"):
        replication("0,30-30", 30)
