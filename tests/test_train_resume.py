"""Runs that are killed outright, and go on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_run import Listener, config, needs_training

from smolcls import ConfigError
from smolcls.scan import scan
from smolcls.train import Run, TrainConfig, train

pytestmark = needs_training

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny_run import config
from smolcls.train import Watcher, train

class Killer(Watcher):
    def progress(self, step, done, total, note=""):
        if (step, done) == (sys.argv[3], int(sys.argv[4])):
            os.kill(os.getpid(), signal.SIGKILL)

train(config(Path(sys.argv[2]), out="killed", epochs=2.0, dropout=0.1), watcher=Killer())
"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("unbroken")
    return train(config(folder, epochs=2.0, dropout=0.1))


def kill_at(folder: Path, step: str, done: int) -> Run:
    """A run below `folder` whose process was killed when it had done so much of a step."""
    arguments = [str(Path(__file__).parent), str(folder), step, str(done)]
    process = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    return Run(folder / "killed")


def weights(run: Run) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(run.adapter / "adapter_model.safetensors"))


def test_a_run_killed_while_training_goes_on_to_the_adapter_of_an_unbroken_one(unbroken: Run) -> None:
    folder = unbroken.folder.parent
    total = json.loads(unbroken.training.read_text())["steps"]
    run = kill_at(folder, "training", total // 2 + 1)
    assert not run.training.exists()
    listener = Listener()
    train(TrainConfig(out=run.folder), resume=True, watcher=listener)
    first = next(done for step, done, *_ in listener.steps if step == "training")
    assert 1 < first <= total // 2 + 1  # from the last checkpoint, not from the start
    expected, found = weights(unbroken), weights(run)
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        assert abs(found[name].astype(float) - weight.astype(float)).max() < 1e-3, name
    one, other = json.loads(run.training.read_text()), json.loads(unbroken.training.read_text())
    assert one["best"] == other["best"]


def test_a_run_killed_while_exporting_leaves_no_half_file_and_goes_on(unbroken: Run, tmp_path: Path) -> None:
    run = kill_at(tmp_path, "writing F16", 7)
    assert run.training.is_file()
    assert list(run.folder.glob(".*.part"))  # what the killed process was writing
    assert not run.f16.exists()
    assert not run.model.exists()
    listener = Listener()
    train(TrainConfig(out=run.folder), resume=True, watcher=listener)
    assert "training" not in {step for step, *_ in listener.steps}
    assert not list(run.folder.rglob(".*.part"))
    assert scan(run.f16).tensors == scan(unbroken.f16).tensors
    assert run.record.is_file()


def test_a_run_that_another_process_holds_is_left_alone(unbroken: Run) -> None:
    import filelock

    with (
        filelock.FileLock(unbroken.folder / ".lock-0"),
        pytest.raises(ConfigError, match="Another process is working on"),
    ):
        train(TrainConfig(out=unbroken.folder), resume=True)
