"""`smolcls train` and `smolcls export`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_run import SETTINGS, config, needs_training

from smolcls.cli.export import command as export_command
from smolcls.cli.train import command as train_command
from smolcls.train import Run, TrainConfig
from smolcls.train.measure import measure
from smolcls.train.steps import STEPS


def run(*arguments: str) -> Result:
    return CliRunner().invoke(train_command, arguments)


def options(settings: TrainConfig) -> list[str]:
    flags = [part for name, value in SETTINGS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return ["--data", str(settings.data), "--base", str(settings.base), "--out", str(settings.out), *flags]


@needs_training
def test_one_command_goes_from_rows_to_a_modelfile_and_says_how_to_use_it(tmp_path: Path) -> None:
    settings = config(tmp_path)
    result = run(*options(settings), "--epochs", "1")
    assert result.exit_code == 0, result.output
    made = Run(settings.out)
    assert made.modelfile.is_file()
    assert made.config().epochs == 1.0
    assert f"trained {made.model}" in result.stdout
    assert f"  ollama create three-type -f {made.modelfile}" in result.stdout
    assert "validation accuracy" in result.stderr
    again = CliRunner().invoke(export_command, [str(made.folder), "--step", "modelfile"])
    assert again.exit_code == 0, again.output
    assert f"exported {made.model}" in again.stdout


def test_the_help_names_every_engine_preset_and_step() -> None:
    text = run("--help").output
    for word in (
        "auto",
        "shared",
        "trl",
        "unsloth",
        "linear",
        "stable",
        "regularised",
        "low-memory",
        "--resume",
        "--rank",
        "--keep-layers COUNT|LAYERS",
    ):
        assert word in text, word
    steps = CliRunner().invoke(export_command, ["--help"]).output
    for name in STEPS:
        assert name in steps, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "fast", "--out", "x"), "'fast' is not one of 'stable', 'regularised', 'low-memory'"),
        ((), "Missing option '--out'"),
    ],
)
def test_wrong_usage_is_refused(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_metrics_of_a_small_table_are_those_counted_by_hand() -> None:
    from math import log

    rows = [[log(0.9), log(0.1)], [log(0.8), log(0.2)], [log(0.3), log(0.7)], [log(0.6), log(0.4)]]
    found = measure(["yes", "no"], rows, [0, 0, 1, 1])
    assert found["accuracy"] == 0.75
    assert found["confusion"] == [[2, 0], [1, 1]]
    assert found["by_label"]["yes"] == {
        "rows": 2,
        "recall": 1.0,
        "precision": pytest.approx(2 / 3),
        "f1": pytest.approx(0.8),
    }
    assert found["by_label"]["no"]["recall"] == 0.5
    # Each confidence has a bin of its own: gaps .1, .2 and .3 where right, .6 where wrong.
    assert found["ece"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.6) / 4)
    assert found["nll"] == pytest.approx(-(log(0.9) + log(0.8) + log(0.7) + log(0.4)) / 4)
