"""`smolcls fit`, with classifiers that answer what they are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from command_line import run

from smolcls import load_router, registry
from smolcls.backends.fake import FakeClassifier

pytest.importorskip("scipy.stats")

TASK = """
name = "colours"
[labels]
red = ""
blue = ""
"""


class Fast(FakeClassifier):
    """Right and sure where it says red, else unsure and wrong half of the time."""

    def __init__(self, **options: object) -> None:
        super().__init__(lambda text: ("red", 0.95 if text.startswith("red") else 0.6), **options)  # type: ignore[arg-type]


class Slow(FakeClassifier):
    """Right but for one text in twenty-five."""

    def __init__(self, **options: object) -> None:
        super().__init__(
            lambda text: "red" if text.endswith("odd") else text.split()[0],
            delay=0.001,
            **options,  # type: ignore[arg-type]
        )


@pytest.fixture(autouse=True)
def stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backends `rules` and `linear`, for this test."""
    kinds = {"rules": Fast, "linear": Slow}
    monkeypatch.setattr(registry, "find", lambda name: kinds.get(name, FakeClassifier))


@pytest.fixture
def rows() -> str:
    """300 rows of two labels; twelve of them deceive the slow stage."""
    lines = []
    for number in range(300):
        label = ("red", "blue")[number % 2]
        text = f"{label} {number}{' odd' if number % 25 == 1 and label == 'blue' else ''}"
        lines.append(json.dumps({"text": text, "label": label}))
    Path("colours.toml").write_text(TASK)
    Path("rows.jsonl").write_text("\n".join(lines))
    return "rows.jsonl"


def fit(rows: str, *more: str) -> Result:
    return run("fit", rows, "--task", "colours.toml", "--stage", "rules@red", "--stage", "linear", *more)


def test_without_an_aim_the_frontier_is_all(rows: str) -> None:
    result = fit(rows)
    assert result.exit_code == 0, result.output
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["accuracy", "mean", "ms", "rules", "%", "linear", "%", "thresholds"]
    assert len(lines) == 2  # all red by the first stage, or its sure answers alone
    accuracy, latency, first, second, threshold = lines[-1].split()
    assert 92 < float(accuracy.rstrip("%")) < 100
    assert float(latency) > 0
    assert float(first) + float(second) == pytest.approx(100)
    assert threshold == "0.949999"
    assert not Path("smolcls.toml").exists()


def test_the_chosen_chain_is_marked_summed_up_and_written(rows: str) -> None:
    result = fit(rows, "--max-error", "0.1", "--out", "smolcls.toml", "--plot", "plots/frontier.png")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line[:1] for line in lines[1:3]] == [" ", "*"]
    assert "on 150 rows, at least 90.00% with confidence 95.0%" in lines[3]
    assert lines[3].endswith("thresholds rules 0.949999")
    own, others = float(lines[4].split()[-1]), float(lines[4].split()[-3].rstrip(","))
    assert lines[4] == f"linear pools: rules {others:g}, linear {own:g}"
    assert lines[5] == "wrote smolcls.toml"
    router = load_router("smolcls.toml")
    assert router.task.names == ("red", "blue")
    assert [(stage.accept, stage.threshold) for stage in router.stages] == [(["red"], 0.949999), (None, 0.0)]
    assert [stage.pool for stage in router.stages] == [None, {"rules": others, "linear": own}]
    assert Path("plots/frontier.png").read_bytes().startswith(b"\x89PNG")


def test_without_pools_each_stage_speaks_for_itself(rows: str) -> None:
    result = fit(rows, "--max-error", "0.1", "--no-pool", "--out", "smolcls.toml")
    assert result.exit_code == 0, result.output
    assert "pools" not in result.stdout
    assert "pool" not in Path("smolcls.toml").read_text()


@pytest.mark.parametrize(
    ("specs", "names"),
    [(["fake:red", "linear"], ["fake", "linear"]), (["fake:red", "fake:blue"], ["fake:red", "fake:blue"])],
)
def test_a_stage_is_named_after_its_backend_where_no_other_has_it(
    rows: str, specs: list[str], names: list[str]
) -> None:
    words = [part for stage in specs for part in ("--stage", stage)]
    result = run("fit", rows, "--task", "colours.toml", *words, "--target-accuracy", "0.4", "--out", "smolcls.toml")
    assert result.exit_code == 0, result.output
    assert result.stdout.split()[3:7:2] == names
    assert [(stage.classifier, stage.name) for stage in load_router("smolcls.toml").stages] == [
        *zip(specs, names, strict=True)
    ]


def test_a_file_that_is_there_is_kept_but_for_force(rows: str) -> None:
    out = Path("smolcls.toml")
    out.write_text("mine")
    result = fit(rows, "--max-error", "0.1", "--out", "smolcls.toml")
    assert result.exit_code == 2
    assert "smolcls.toml is there already. Give --force" in result.stderr
    assert out.read_text() == "mine"
    assert fit(rows, "--max-error", "0.1", "--out", "smolcls.toml", "--force").exit_code == 0
    assert "[[stage]]" in out.read_text()


def test_where_no_chain_serves_the_aim_the_frontier_is_shown_and_nothing_written(rows: str) -> None:
    result = fit(rows, "--max-error", "0.01", "--out", "smolcls.toml", "--plot", "frontier.png")
    assert result.exit_code == 2
    assert "The rows are too few for an error of 0.01" in result.stderr
    assert len(result.stdout.splitlines()) == 3
    assert Path("frontier.png").exists()
    assert not Path("smolcls.toml").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.toml"], "--out writes a chosen chain"),
        (["--max-error", "0.1", "--max-latency-ms", "3"], "found max_error, max_latency_ms"),
        (["--max-error", "2"], "max_error must be a number above 0 and below 1; found 2.0"),
        (["--stage", "rules@0.9"], "behind @ labels of the task (red, blue); found 'rules@0.9'"),
        (["--stage", "@red"], "found '@red'"),
    ],
)
def test_wrong_use(rows: str, options: list[str], message: str) -> None:
    result = fit(rows, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_without_stages_the_chain_of_classify_is_fitted(rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOLCLS_CHAIN", "linear@0.5,rules")
    result = run("fit", rows, "--task", "colours.toml", "--target-accuracy", "0.9")
    assert result.exit_code == 0, result.output
    assert result.stdout.split()[3:7] == ["linear", "%", "rules", "%"]
    assert "thresholds linear 0.99" in result.stdout


def test_a_task_of_the_chain_s_own_has_to_be_named_to_be_written(rows: str) -> None:
    Path("smolcls.toml").write_text('task = "colours.toml"\n[[stage]]\nuse = "linear"\n')
    result = run("fit", rows, "--max-error", "0.1", "--out", "new.toml")
    assert result.exit_code == 2
    assert "The chain's task 'colours' has to be named to be written: give --task FILE." in result.stderr
