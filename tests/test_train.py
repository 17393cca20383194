"""A small run from rows to a model that answers, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_run import Listener, config, needs_training, read_rows, rows, write_rows

import smolcls
from smolcls import Calibration, ConfigError, InputError, ModelError, Task, prompt
from smolcls.train import Run, TrainConfig, export, export_checkpoint, train
from smolcls.train.rows import gather
from smolcls.train.run import task_toml
from smolcls.train.steps import STEPS

pytestmark = needs_training


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Listener]:
    listener = Listener()
    return train(config(tmp_path_factory.mktemp("run")), watcher=listener), listener


@pytest.fixture
def copy(trained: tuple[Run, Listener], tmp_path: Path) -> Run:
    """The run again, to be changed; times are kept, so its steps still count as done."""
    return Run(Path(shutil.copytree(trained[0].folder, tmp_path / "copy")))


def test_every_file_of_a_run_is_there_and_none_is_half_written(trained: tuple[Run, Listener]) -> None:
    run, _ = trained
    for path in (
        run.f16,
        run.model,
        run.onnx,
        run.modelfile,
        run.scores,
        run.calibration,
        run.metrics,
        run.card,
        run.record,
    ):
        assert path.is_file(), path
    assert (run.adapter / "adapter_model.safetensors").is_file()
    assert (run.merged / "tokenizer.json").is_file()
    assert not list(run.folder.rglob("*.part"))


def test_the_rows_of_a_run_are_those_given_each_on_one_side(trained: tuple[Run, Listener]) -> None:
    parts = [read_rows(trained[0].rows(name)) for name in ("train", "validation", "test")]
    texts = [row["text"] for part in parts for row in part]
    assert sorted(texts) == sorted(row["text"] for row in rows())


def test_the_model_answers_with_the_calibration_beside_it_and_as_the_metrics_say(
    trained: tuple[Run, Listener],
) -> None:
    run, _ = trained
    held = read_rows(run.rows("test"))
    with smolcls.load(f"llamacpp:{run.model}") as classifier:
        answers = [classifier.classify(row["text"]) for row in held]
    right = sum(answer.label == row["label"] for answer, row in zip(answers, held, strict=True))
    metrics = json.loads(run.metrics.read_text())["test"]
    assert all(answer.calibrated for answer in answers)
    assert metrics["accuracy"] == pytest.approx(right / len(held))
    assert metrics["accuracy"] > 0.5  # a third of the rows have each label
    assert metrics["temperature"] == Calibration.load(run.calibration).temperature
    assert sum(map(sum, metrics["confusion"])) == metrics["rows"] == len(held)


def test_the_merged_folder_is_the_model_of_the_gguf(trained: tuple[Run, Listener]) -> None:
    run, _ = trained
    texts = ["what is a kite 7", "/lamp", "build the north wheel"]
    with smolcls.load(f"transformers:{run.merged}") as merged, smolcls.load(f"llamacpp:{run.f16}") as f16:
        for one, other in zip(merged.score_batch(texts), f16.score_batch(texts), strict=True):
            assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=0.05)


def test_the_onnx_model_answers_as_the_gguf_with_a_temperature_of_its_own(trained: tuple[Run, Listener]) -> None:
    run, _ = trained
    texts = [row["text"] for row in read_rows(run.rows("test"))]
    with smolcls.load(f"onnx:{run.onnx}") as fast, smolcls.load(f"llamacpp:{run.model}") as usual:
        pairs = list(zip(fast.classify_batch(texts), usual.classify_batch(texts), strict=True))
        assert fast.calibration is not None
        assert fast.calibration.backend == "onnx"
    assert all(one.calibrated for one, _ in pairs)
    assert sum(one.label == other.label for one, other in pairs) >= 0.8 * len(pairs)


def test_where_there_can_be_no_onnx_model_that_is_said_and_the_old_one_goes(
    copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smolcls.export.onnx._LARGEST", 1000)
    listener = Listener()
    export(copy, ["onnx"], watcher=listener)
    assert any("There is no ONNX model: A model of" in remark for remark in listener.remarks)
    assert not copy.onnx.exists()
    assert copy.commands()[0].startswith("smolcls classify --backend llamacpp:")


def test_a_missing_onnx_runtime_does_not_cost_a_run_its_export(copy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    listener = Listener()
    export(copy, ["onnx"], watcher=listener)
    assert any("There is no ONNX model" in remark and "onnxruntime" in remark for remark in listener.remarks)
    assert not copy.onnx.exists()


def test_the_modelfile_names_the_model_and_the_frame_that_was_trained(trained: tuple[Run, Listener]) -> None:
    text = trained[0].modelfile.read_text()
    assert "FROM ./model.gguf" in text
    assert prompt.suffix() in text
    assert prompt.system_message(Task.load("three-type")) in text


def test_the_record_holds_settings_data_versions_files_and_commands(trained: tuple[Run, Listener]) -> None:
    run, _ = trained
    record = json.loads(run.record.read_text())
    assert record["config"]["rank"] == 16
    assert record["config"]["max_norm"] == 1.0  # the engine's default, written out
    assert (
        record["data"]["train"]["rows"] + record["data"]["validation"]["rows"] + record["data"]["test"]["rows"] == 120
    )
    assert {"torch", "transformers", "peft", "smolcls", "python"} <= set(record["versions"])
    assert record["files"]["model.gguf"]["bytes"] == run.model.stat().st_size
    assert record["use"][:2] == [
        f'smolcls classify --backend onnx:{run.onnx} "a text"',
        f'smolcls classify --backend llamacpp:{run.model} "a text"',
    ]
    assert record["files"]["onnx/model.onnx"]["bytes"] == run.onnx.stat().st_size
    assert [item["what"] for item in record["training"]["expectations"]] == [
        "training loss",
        "validation accuracy",
        "hours",
    ]


def test_the_card_shows_the_measured_numbers(trained: tuple[Run, Listener]) -> None:
    run, _ = trained
    card = run.card.read_text()
    found = json.loads(run.metrics.read_text())["test"]
    assert f"| test | {found['rows']} | {found['accuracy']:.1%} |" in card
    assert card.startswith("---\nbase_model: ")  # no licence: the tiny base says none
    assert f"`model.gguf` is {run.config().quantisation}, `onnx/model.onnx` the same" in card
    assert f"rank 16, alpha 32, dropout {0.0}" in card


def test_progress_tells_steps_and_loss_and_each_evaluation_the_accuracy_by_label(
    trained: tuple[Run, Listener],
) -> None:
    run, listener = trained
    training = [step for step in listener.steps if step[0] == "training"]
    total = training[-1][2]
    assert [step[1] for step in training] == list(range(1, total + 1))
    assert training[-1][3].startswith("loss ")
    said = [remark for remark in listener.remarks if "validation accuracy" in remark]
    assert len(said) >= 3
    assert "command" in said[-1]
    assert "workflow" in said[-1]
    history = json.loads(run.training.read_text())["history"]
    assert history[0]["loss"] > 2 * [item["loss"] for item in history if "loss" in item][-1]


def test_a_finished_run_is_not_trained_again_and_done_steps_are_skipped(copy: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.folder.glob("*.gguf")}
    listener = Listener()
    train(TrainConfig(out=copy.folder), resume=True, watcher=listener)
    assert listener.steps == []
    assert {path: path.stat().st_mtime_ns for path in copy.folder.glob("*.gguf")} == before


# Scores may differ in their last digits.
@pytest.mark.parametrize("step", [name for name in STEPS if name != "score"])
def test_any_step_can_be_repeated_alone_and_gives_the_same(copy: Run, step: str) -> None:
    export(copy, [step])  # the folder's new name stands in some files
    before = {name: (copy.folder / name).read_bytes() for name in STEPS[step].writes}
    export(copy, [step])
    for name, content in before.items():
        assert (copy.folder / name).read_bytes() == content, name


def test_a_changed_file_makes_the_steps_after_it_run_again(copy: Run) -> None:
    copy.model.unlink()
    listener = Listener()
    export(copy, watcher=listener)
    assert {step for step, *_ in listener.steps} == {"quantising", "scoring held-out rows"}
    assert copy.model.is_file()


def test_an_adapter_trained_elsewhere_is_exported(trained: tuple[Run, Listener], tmp_path: Path) -> None:
    run, _ = trained
    best = run.folder / json.loads(run.training.read_text())["best"]
    made = export_checkpoint(
        best,
        config(
            run.folder.parent,
            out=str(tmp_path / "other"),
            data=run.rows("train"),
            validation=run.rows("validation"),
            test=run.rows("test"),
        ),
    )
    assert made.model.read_bytes() == run.model.read_bytes()
    assert json.loads(made.metrics.read_text())["test"]["accuracy"] == pytest.approx(
        json.loads(run.metrics.read_text())["test"]["accuracy"]
    )


def test_an_unknown_step_and_a_folder_that_is_no_run_are_refused(copy: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No step 'bake'; the steps are adapter, gguf, quantise"):
        export(copy, ["bake"])
    with pytest.raises(ConfigError, match=r"is not the folder of a training run that got so far: config\.json"):
        export(Run(tmp_path))


def test_a_folder_that_holds_a_run_is_not_overwritten(trained: tuple[Run, Listener]) -> None:
    run, _ = trained
    with pytest.raises(ConfigError, match=r"holds a run. Go on with it by --resume, or name another --out"):
        train(config(run.folder.parent))


def test_a_resumed_run_keeps_its_settings_and_its_task(copy: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"was started with rank 16; found 8. Leave it out to go on"):
        train(TrainConfig(out=copy.folder, rank=8), resume=True)
    with pytest.raises(ConfigError, match="was started for another task"):
        train(TrainConfig(out=copy.folder), task=Task(["yes", "no"]), resume=True)
    with pytest.raises(ConfigError, match=r"config\.json cannot be read.*smolcls train --resume"):
        train(TrainConfig(out=tmp_path / "nothing"), resume=True)


def test_a_base_that_cannot_be_exported_is_refused_before_training(tmp_path: Path) -> None:
    settings = config(tmp_path)
    path = tmp_path / "base" / "config.json"
    path.write_text(path.read_text().replace('"model_type": "llama"', '"model_type": "gemma2"'))
    with pytest.raises(ModelError, match=r"holds a model of type 'gemma2'. The GGUF export knows the Llama family"):
        train(settings)
    assert not settings.out.exists()


def test_a_task_of_ones_own_is_trained_and_found_beside_the_model(tmp_path: Path) -> None:
    task = Task({"spam": 'unwanted "mail"', "ham": "wanted\nmail"}, name="mail", describe_labels=True)
    data = [{"text": f"{word} {number} offer", "label": word} for number in range(20) for word in ("spam", "ham")]
    settings = config(tmp_path, data=write_rows(tmp_path / "mail.jsonl", data), epochs=0.5, evaluations=1)
    listener = Listener()
    run = train(settings, task=task, watcher=listener)
    assert run.task() == task
    assert run.commands()[2] == f"ollama create mail -f {run.modelfile}"
    assert all(f"--task {run.folder}/task.toml" in command for command in run.commands()[:2])
    # Too few rows for a temperature: nothing is made up.
    assert not run.calibration.exists()
    assert any("validation rows are fewer than 30" in remark for remark in listener.remarks)
    with smolcls.load(f"llamacpp:{run.model}", task=run.folder / "task.toml") as classifier:
        assert not classifier.classify("spam offer").calibrated


def test_a_task_survives_its_file(tmp_path: Path) -> None:
    task = Task({'a "b"': "back\\slash\ttab", "ü": "ends\n"}, name="t", instruction='Say "a" or ü.', max_text_bytes=64)
    (tmp_path / "task.toml").write_text(task_toml(task), encoding="utf-8")
    assert Task.load(tmp_path / "task.toml") == task


def test_rows_of_another_label_and_too_few_rows_are_refused(tmp_path: Path) -> None:
    task = Task.load("three-type")
    few = write_rows(tmp_path / "few.jsonl", rows(2))
    with pytest.raises(InputError, match=r"has 2 rows, too few to hold some out.*--validation and --test"):
        gather(TrainConfig(data=few), task)
    foreign = write_rows(tmp_path / "foreign.jsonl", [{"text": "a", "label": "poem"}])
    with pytest.raises(InputError, match="row 1: the label is 'poem'; expected one of command, prompt, workflow"):
        gather(TrainConfig(data=foreign), task)
    with pytest.raises(ConfigError, match="The shipped rows belong to the task three-type"):
        gather(TrainConfig(), Task(["yes", "no"]))


def test_held_out_files_that_are_named_are_taken_whole(tmp_path: Path) -> None:
    task = Task.load("three-type")
    data, test = write_rows(tmp_path / "data.jsonl", rows(120)), write_rows(tmp_path / "test.jsonl", rows(9))
    parts = gather(TrainConfig(data=data, test=test), task)
    assert [row.text for row in parts["test"]] == [row["text"] for row in rows(9)]
    assert len(parts["train"]) + len(parts["validation"]) == 120
    assert len(parts["validation"]) >= 25


def test_the_shipped_rows_are_the_packages_own() -> None:
    parts = gather(TrainConfig(), Task.load("three-type"))
    assert len(parts["train"]) > 10 * len(parts["validation"]) > 0


def test_trl_goes_the_whole_way_and_low_memory_leaves_a_configuration_for_deepspeed(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    listener = Listener()
    changes: dict[str, Any] = {"engine": "trl", "preset": "low-memory", "batch": 4, "accumulation": 2}
    changes |= {"epochs": 0.5, "evaluations": 1}
    run = train(config(tmp_path, **changes), watcher=listener)
    assert run.model.is_file()
    assert any("validation accuracy" in remark for remark in listener.remarks)
    written = (run.folder / "zero2.yaml").read_text()
    assert "  zero_stage: 2\n" in written
    assert "  gradient_accumulation_steps: 2\n" in written
