"""Runs on a part of a base's layers, from rows to the files that answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from contract import write_tiny_folder, write_tiny_gguf
from tiny_run import Listener, config, needs_training

import smolcls
from smolcls import ConfigError, ModelError, Task, build
from smolcls.data.rows import Row
from smolcls.export.layers import replication
from smolcls.files import read_json, sha256
from smolcls.scan import scan
from smolcls.train import Run, TrainConfig, export, export_checkpoint, train
from smolcls.train.config import settle
from smolcls.train.encode import Encoder
from smolcls.train.job import Job

pytestmark = needs_training

KEEP = "0,2-3"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("layers")
    base = write_tiny_gguf(folder / "four.gguf", layers=4)
    return train(config(folder, base=base, keep_layers=KEEP, epochs=3.0, dropout=0.1))


@pytest.fixture
def copy(trained: Run, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(trained.folder, tmp_path / "copy")))


def weights(run: Run) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(run.adapter / "adapter_model.safetensors"))


def test_every_file_of_the_run_is_that_of_the_shorter_model(trained: Run) -> None:
    assert {name.split(".")[4] for name in weights(trained)} == {"0", "1", "2"}
    assert read_json(trained.adapter / "adapter_config.json")["layer_replication"] == [[0, 1], [2, 4], [4, 4]]
    for path in (trained.f16, trained.model):
        header = scan(path)
        assert (header.metadata["llama.block_count"], header.tensors) == (3, 2 + 3 * 9)
    assert read_json(trained.merged / "config.json")["num_hidden_layers"] == 3
    assert read_json(trained.record)["config"]["keep_layers"] == KEEP
    assert "- layers of the base that are kept: 0-0,2-3\n" in trained.card.read_text()
    assert read_json(trained.metrics)["test"]["accuracy"] > 0.5  # a third of the rows have each label


def test_the_merged_folder_is_the_model_of_the_gguf(trained: Run) -> None:
    texts = ["what is a kite 7", "/lamp", "build the north wheel"]
    with (
        smolcls.load(f"transformers:{trained.merged}") as merged,
        smolcls.load(f"llamacpp:{trained.f16}") as f16,
    ):
        for one, other in zip(merged.score_batch(texts), f16.score_batch(texts), strict=True):
            assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=0.05)


def test_the_adapter_ships_and_is_built_into_the_runs_own_model(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Path(trained.config().base)
    monkeypatch.setenv("SMOLCLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "bundled_base", lambda: base)
    monkeypatch.setattr(build, "BUNDLED_SHA256", sha256(base))
    monkeypatch.setattr(build, "shipped_adapter", lambda asked: trained.adapter)
    built = build.build(quantisation=trained.config().quantisation)
    assert built.model.read_bytes() == trained.model.read_bytes()


@pytest.mark.parametrize("step", ["gguf", "merge"])
def test_a_repeated_step_of_the_export_gives_the_same(copy: Run, step: str) -> None:
    paths = (copy.f16, copy.merged / "model.safetensors", copy.merged / "config.json")
    before = [path.read_bytes() for path in paths]
    export(copy, [step])
    assert [path.read_bytes() for path in paths] == before


def test_an_interrupted_run_goes_on_with_the_same_layers(trained: Run, copy: Run) -> None:
    copy.training.unlink()
    found = sorted(copy.checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    assert len(found) == 2
    shutil.rmtree(found[-1])
    settings = json.loads((copy.folder / "config.json").read_text())
    (copy.folder / "config.json").write_text(json.dumps({**settings, "out": str(copy.folder)}))
    with pytest.raises(ConfigError, match=r"was started with keep_layers '0,2-3'; found '3'. Leave it out to go on"):
        train(TrainConfig(out=copy.folder, keep_layers="3"), resume=True)
    listener = Listener()
    train(TrainConfig(out=copy.folder), resume=True, watcher=listener)
    steps = [done for step, done, *_ in listener.steps if step == "training"]
    assert 1 < steps[0] < steps[-1]  # from the checkpoint, not from the start
    expected, now = weights(trained), weights(copy)
    assert expected.keys() == now.keys()
    for name, weight in expected.items():
        assert abs(now[name].astype(float) - weight.astype(float)).max() < 1e-3, name


def test_a_checkpoint_says_itself_which_layers_it_keeps(trained: Run, tmp_path: Path) -> None:
    best = trained.folder / json.loads(trained.training.read_text())["best"]
    given: dict[str, Any] = {"data": trained.rows("train"), "base": trained.config().base, "out": tmp_path / "other"}
    with pytest.raises(ConfigError, match=r"says itself which layers it keeps .*; leave keep_layers out"):
        export_checkpoint(best, TrainConfig(**given, keep_layers=KEEP))
    assert not (tmp_path / "other").exists()
    made = export_checkpoint(best, TrainConfig(**given))
    assert made.model.read_bytes() == trained.model.read_bytes()
    assert made.config().keep_layers == "0-0,2-3"


def test_trl_trains_the_first_layers_of_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    base = write_tiny_folder(tmp_path / "three", layers=3)
    run = train(config(tmp_path, base=base, engine="trl", keep_layers="2", epochs=0.5, evaluations=1))
    assert scan(run.model).metadata["llama.block_count"] == 2
    assert {name.split(".")[4] for name in weights(run)} == {"0", "1"}
    assert read_json(run.merged / "config.json")["num_hidden_layers"] == 2


def test_unsloth_is_told_the_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    from smolcls.train import unsloth_engine, whole_rows
    from smolcls.train.base import read_tokenizer

    base = write_tiny_folder(tmp_path / "four", layers=4)
    told: dict[str, Any] = {}
    fast = SimpleNamespace(
        from_pretrained=lambda **_: (SimpleNamespace(config=SimpleNamespace(num_hidden_layers=4)), None),
        get_peft_model=lambda model, **options: told.update(options),
    )
    monkeypatch.setattr(unsloth_engine, "require", lambda *_, **__: SimpleNamespace(FastLanguageModel=fast))
    monkeypatch.setattr(whole_rows, "make_trainer", lambda job, model: model)
    encoder = Encoder.of(Task.load("three-type"), read_tokenizer(base))
    rows = encoder.examples([Row("/help", "command")])
    settings = settle(config(tmp_path, base=base, engine="unsloth", keep_layers=KEEP), "unsloth")
    unsloth_engine.make_trainer(Job(settings, base, encoder, rows, rows, {}, lambda _: {}, [], print))
    assert told["layer_replication"] == replication(KEEP, 4)


def test_layers_that_cannot_be_kept_are_refused_before_training(tmp_path: Path) -> None:
    settings = config(tmp_path, keep_layers="0-2")
    with pytest.raises(ConfigError, match="keep_layers '0-2' needs a base of 3 layers or more; this one has 2"):
        train(settings)
    assert not settings.out.exists()
    with pytest.raises(ConfigError, match=r"keep_layers must be how many of the first layers are kept.*found '2-1'"):
        config(tmp_path, keep_layers="2-1")
    with pytest.raises(ConfigError, match="The engine linear has no setting keep_layers; leave it out"):
        TrainConfig(engine="linear", keep_layers=1)
    path = tmp_path / "base" / "config.json"
    path.write_text(path.read_text().replace('"model_type": "llama"', '"model_type": "gemma2"'))
    with pytest.raises(ModelError, match=r"holds a model of type 'gemma2'. The GGUF export knows the Llama family"):
        train(config(tmp_path, keep_layers="1"))
