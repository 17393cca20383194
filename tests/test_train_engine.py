"""The engines: the same mathematics as ordinary training, and what happens when a run goes wrong."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tiny_run import Listener, config, needs_training, rows

from smolcls import ConfigError, ModelError, Task
from smolcls.data.rows import Row
from smolcls.native import llama
from smolcls.train import TrainConfig, engine
from smolcls.train.base import load_model, quiet, read_tokenizer
from smolcls.train.config import settle
from smolcls.train.encode import IGNORED, Encoder
from smolcls.train.engine import Material, choose, fit, last_whole, with_precision
from smolcls.train.job import Job

pytestmark = needs_training


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    llama()  # before torch, as `train` does
    base = Path(config(tmp_path_factory.mktemp("material")).base)
    encoder = Encoder.of(Task.load("three-type"), read_tokenizer(base))
    examples = encoder.examples([Row(**row) for row in rows(36)])
    return Material(base, encoder, examples[:24], examples[24:])


def settled(tmp_path: Path, chosen: str = "shared", **changes: Any) -> TrainConfig:
    return settle(config(tmp_path, engine=chosen, **{"epochs": 1.0, "evaluations": 1, **changes}), chosen)


def adapter(trained_in: TrainConfig, trained: engine.Trained) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(trained_in.out / trained.best / "adapter_model.safetensors"))


def test_loss_and_gradients_are_those_of_whole_rows(material: Material, tmp_path: Path) -> None:
    import torch

    from smolcls.train.shared_prefix import Collator, make_trainer

    settings = settled(tmp_path, pass_tokens=64)  # so that the batch goes through in several parts
    arguments = {"output_dir": str(tmp_path / "out"), "report_to": "none", "disable_tqdm": True}
    job = Job(
        config=settings, base=material.base, encoder=material.encoder, train=list(material.train),
        validation=[], arguments=arguments, metrics=lambda _: {}, callbacks=[], say=print,
    )  # fmt: skip
    with quiet():
        trainer = make_trainer(job)
    model = trainer.model
    generator = torch.Generator().manual_seed(3)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for weight in weights.values():  # B is nought at first, and would leave A without a gradient
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    prefix = material.encoder.prefix
    batch = list(material.train[:7])
    loss = trainer.training_step(model, Collator(len(prefix), 0)(batch))
    found = {name: weight.grad.clone() for name, weight in weights.items()}
    model.zero_grad()
    total, answers = torch.zeros(()), 0
    for example in batch:  # one whole row at a time: no padding, no cache, no parts
        ids = torch.tensor([prefix + example["input_ids"]])
        labels = torch.tensor([[IGNORED] * len(prefix) + example["labels"]])
        logits = model(input_ids=ids, use_cache=False).logits
        total = total + torch.nn.functional.cross_entropy(
            logits[0, :-1], labels[0, 1:], ignore_index=IGNORED, reduction="sum"
        )
        answers += int((labels != IGNORED).sum())
    mean = total / answers
    torch.autograd.backward(mean)
    assert loss.item() == pytest.approx(mean.item(), rel=1e-4)
    for name, weight in weights.items():
        scale = weight.grad.abs().max()
        assert scale > 0
        assert (found[name] - weight.grad).abs().max() <= 2e-3 * scale, name


@pytest.mark.parametrize(
    "other", [{"batch": 2, "accumulation": 4}, {"pass_tokens": 64}, {"chosen": "trl"}], ids=["passes", "parts", "trl"]
)
def test_passes_parts_and_engines_give_the_same_adapter(
    material: Material, tmp_path: Path, other: dict[str, Any]
) -> None:
    if "chosen" in other:
        pytest.importorskip("trl")
    plain = settled(tmp_path, out="plain", dropout=0.0, learning_rate=0.002)
    changed = settled(tmp_path, out="changed", **{"dropout": 0.0, "learning_rate": 0.002, **other})
    one, two = fit(plain, material, Listener()), fit(changed, material, Listener())
    assert one.steps == two.steps == 3
    losses = [[item["loss"] for item in trained.history if "loss" in item] for trained in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    # Adam makes whole steps of tiny gradients, so single weights may differ by a step; most do not.
    first, second = adapter(plain, one), adapter(changed, two)
    assert first.keys() == second.keys()
    apart = [abs(first[name] - second[name]).mean() / (abs(first[name]).mean() + 1e-9) for name in first]
    assert sum(apart) / len(apart) < 0.02


def test_evaluations_count_rows_by_label_as_a_forward_pass_does(material: Material, tmp_path: Path) -> None:
    import torch

    settings = settled(tmp_path, learning_rate=0.01, epochs=4.0)
    trained = fit(settings, material, Listener())
    import peft

    with quiet():
        model = peft.PeftModel.from_pretrained(load_model(material.base, dtype="float32"), settings.out / trained.best)
    right: dict[str, list[bool]] = {}
    names = {tuple(tokens): name for name, tokens in material.encoder.answers.items()}
    for example in material.validation:
        answer = [token for token in example["labels"] if token != IGNORED]
        ids = torch.tensor([material.encoder.prefix + example["input_ids"]])
        with torch.no_grad():
            guessed = model(input_ids=ids).logits[0, -1 - len(answer) : -1].argmax(-1).tolist()
        right.setdefault(names[tuple(answer)], []).append(guessed == answer)
    best = max((item for item in trained.history if "eval_accuracy" in item), key=lambda item: item["eval_accuracy"])
    for name, found in right.items():
        assert best[f"eval_accuracy_{name}"] == pytest.approx(sum(found) / len(found))
    assert best["eval_accuracy"] == pytest.approx(sum(sum(f) / len(f) for f in right.values()) / len(right))


def test_want_of_memory_halves_the_batch_and_says_so(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smolcls.train import shared_prefix

    tried = []

    def make_trainer(job: Job) -> Any:
        tried.append((job.config.batch, job.config.accumulation))
        trainer = shared_prefix.make_trainer(job)
        if job.config.batch > 2:

            def fail(*_: Any, **__: Any) -> None:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

            trainer.training_step = fail
        return trainer

    module = ModuleType("scarce")
    module.make_trainer = make_trainer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scarce", module)
    monkeypatch.setitem(engine.MODULES, "shared", "scarce")
    listener = Listener()
    trained = fit(settled(tmp_path), material, listener)
    assert tried == [(8, 1), (4, 2), (2, 4)]
    assert trained.steps == 3
    assert trained.remarks == [item for item in listener.remarks if "Memory ran out" in item]
    assert trained.remarks[-1] == "Memory ran out; going on with 2 rows a pass and 4 passes a step."


def test_memory_too_small_for_one_row_and_other_errors_are_raised(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "CUDA out of memory. Tried to allocate 2.00 GiB"

    def make_trainer(job: Job) -> Any:
        raise RuntimeError(message)

    module = ModuleType("none")
    module.make_trainer = make_trainer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "none", module)
    monkeypatch.setitem(engine.MODULES, "trl", "none")
    with pytest.raises(ModelError, match=r"Memory is too small for a single row.*--preset low-memory"):
        fit(settled(tmp_path, "trl"), material, Listener())
    message = "mat1 and mat2 shapes cannot be multiplied"
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit(settled(tmp_path, "trl"), material, Listener())


def state(losses: list[float], step: int, **more: Any) -> Any:
    history = [{"loss": loss, "step": index + 1} for index, loss in enumerate(losses)]
    return SimpleNamespace(log_history=history, global_step=step, max_steps=30, **more)


def test_a_loss_that_is_no_number_stops_the_run_with_the_preset_to_try(tmp_path: Path) -> None:
    from smolcls.train.guard import Guard

    guard = Guard(settled(tmp_path), Listener())
    with pytest.raises(ModelError, match=r"diverged: at step 4 the loss is nan\. Try: --preset stable"):
        guard.on_log(None, state([1.0], 4), None, {"loss": float("nan")})
    with pytest.raises(ModelError, match="diverged"):
        guard.on_log(None, state([1.0], 4), None, {"loss": 1.0, "grad_norm": float("inf")})


def test_a_loss_that_does_not_fall_stops_the_run_but_not_too_soon(tmp_path: Path) -> None:
    from smolcls.train.guard import Guard

    guard = Guard(settled(tmp_path), Listener())
    flat = [2.0, *[2.1] * 9]
    with pytest.raises(ModelError, match=r"does not fall: it was 2\.00 at the start and is 2\.10 at step 10 of 30"):
        guard.on_log(None, state(flat, 10), None, {"loss": 2.1})
    guard.on_log(None, state(flat[:9], 9), None, {"loss": 2.1})
    guard.on_log(None, state([2.0, *[1.5] * 9], 10), None, {"loss": 1.5})
    guard.on_log(None, state(flat, 9), None, {"loss": 2.1})


def test_training_stops_when_the_accuracy_has_not_risen_for_long(tmp_path: Path) -> None:
    from smolcls.train.guard import Guard

    listener = Listener()
    guard = Guard(settled(tmp_path, patience=2), listener)
    metrics = {"eval_accuracy": 0.8, "eval_accuracy_prompt": 0.8}
    history = [{"eval_accuracy": value, "step": step} for step, value in ((5, 0.7), (10, 0.9), (15, 0.9))]
    for step, expected in ((16, True), (12, False)):
        control = SimpleNamespace(should_training_stop=False)
        at = SimpleNamespace(log_history=history, global_step=step, max_steps=30)
        guard.on_evaluate(None, at, control, metrics)
        assert control.should_training_stop is expected
    assert "Training stops early: the accuracy has not risen for 2 evaluations." in listener.remarks
    assert listener.remarks[0] == (
        "step 16 of 30: validation accuracy 80.0% (prompt 80.0%); by now 90% may be expected"
    )


def test_a_run_that_gets_no_better_is_stopped(material: Material, tmp_path: Path) -> None:
    listener = Listener()
    settings = settled(tmp_path, learning_rate=1e-8, epochs=4.0, evaluations=6, patience=2)
    trained = fit(settings, material, listener)
    assert trained.steps == 6  # three evaluations, two steps apart, of twelve steps
    assert listener.remarks[-1] == "Training stops early: the accuracy has not risen for 2 evaluations."


def test_a_run_that_will_take_too_long_is_warned_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smolcls.train import guard as module

    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    listener = Listener()
    watching = module.Guard(settled(tmp_path, hours=1.0), listener)
    for step in range(40):
        at = SimpleNamespace(global_step=step, max_steps=100)
        watching.on_step_begin(None, at, None)
        now[0] += 90.0
        watching.on_step_end(None, SimpleNamespace(global_step=step + 1, max_steps=100), None)
    assert len(listener.remarks) == 1
    assert "about 2.5 hours, more than the 1 of --hours" in listener.remarks[0]


def test_the_newest_whole_checkpoint_is_found_and_broken_ones_are_removed(material: Material, tmp_path: Path) -> None:
    settings = settled(tmp_path, evaluations=3)
    fit(settings, material, Listener())
    folder = settings.out / "checkpoints"
    whole = last_whole(folder)
    assert whole is not None
    assert whole.name == "checkpoint-3"
    weights = whole / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    (folder / "checkpoint-4").mkdir()
    found = last_whole(folder)
    assert found is not None
    assert found.name in {"checkpoint-1", "checkpoint-2"}
    assert [path.name for path in folder.glob("checkpoint-*")] == [found.name]
    assert last_whole(tmp_path / "nothing") is None


def test_on_a_cpu_the_shared_prefix_is_chosen_and_a_named_engine_stays(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    assert choose("auto", tmp_path) == "shared"
    assert choose("trl", tmp_path) == "trl"


@pytest.mark.parametrize(
    ("able", "expected"),
    [({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True, "avx512_bf16": False}, "bfloat16"), ({}, "float32")],
)
def test_precision_is_what_was_asked_for_or_suits_the_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, able: dict[str, bool], expected: str
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert with_precision(settled(tmp_path)).precision == expected
    assert with_precision(settled(tmp_path, precision="float32")).precision == "float32"
    assert with_precision(settled(tmp_path, precision="bfloat16")).precision == "bfloat16"
    assert with_precision(settled(tmp_path, "trl")).precision == "auto"
    with pytest.raises(ConfigError, match="The engine trl chooses its precision by itself"):
        with_precision(settled(tmp_path, "trl", precision="bfloat16"))


def test_both_precisions_train_and_keep_the_adapter_in_32_bit(material: Material, tmp_path: Path) -> None:
    found = {}
    for precision in ("float32", "bfloat16"):
        settings = settled(tmp_path / precision, precision=precision)
        found[precision] = adapter(settings, fit(settings, material, Listener()))
    for name, weight in found["float32"].items():
        assert weight.dtype == found["bfloat16"][name].dtype == "float32"
    assert any((weight != found["bfloat16"][name]).any() for name, weight in found["float32"].items())


def test_rows_that_are_too_long_are_left_out(material: Material) -> None:
    encoder = material.encoder
    made = [Row("a", "prompt"), Row("b " * 200, "prompt")]
    limit = len(encoder.prefix) + 60
    assert len(encoder.examples(made, limit)) == 1
    assert len(encoder.examples(made)) == 2
