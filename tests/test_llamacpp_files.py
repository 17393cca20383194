"""The file that the llama.cpp backend loads: damaged, foreign, unfit; and the calibration beside it."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from contract import write_tiny_gguf
from tiny import (
    HAS_LLAMA_CPP,
    SPREAD,
    fitted,
    run,
    tiny_classifier,
)

import smolcls
from smolcls import ConfigError, ModelError, Task, build, native
from smolcls.files import sha256

if not HAS_LLAMA_CPP:
    pytest.skip("needs the extra llamacpp", allow_module_level=True)

from smolcls.backends.llamacpp import LlamaCppClassifier


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads must be a whole number of at least 1; found 0"),
        ({"threads": True}, "threads must be a whole number of at least 1; found True"),
        ({"threads": 1.5}, r"threads must be a whole number of at least 1; found 1\.5"),
    ],
)
def test_unusable_options(tiny: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LlamaCppClassifier(tiny, **options)


@pytest.mark.parametrize("model", ["", " ", 5, b"model.gguf"])
def test_what_is_no_path(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"model must be the path of a model file, such as llamacpp:model\.gguf"):
        LlamaCppClassifier(model)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no model file .*none\.gguf\. Expected a GGUF file"):
        smolcls.load(f"llamacpp:{tmp_path / 'none.gguf'}")
    with pytest.raises(ModelError, match=r"There is no model file ~no-such-user/none\.gguf"):
        smolcls.load("llamacpp:~no-such-user/none.gguf")


def test_a_task_whose_prompt_is_longer_than_the_model_can_read(tiny: Path) -> None:
    with pytest.raises(ModelError, match=r"the model was trained for 8192\. Lower the task's max_text_bytes"):
        tiny_classifier(tiny, task=Task(["a", "b"], max_text_bytes=9000))


LOAD = """
    import sys
    import smolcls
    try:
        smolcls.load("llamacpp:" + sys.argv[1], threads=1).classify("hi")
    except smolcls.SmolclsError as error:
        print(type(error).__name__, error)
    else:
        print("loaded")
"""


def damaged(whole: bytes, kind: str) -> bytes:
    changes = {
        "empty": b"",
        "magic-alone": b"GGUF",
        "header-alone": whole[:9_000],
        "half": whole[: len(whole) // 2],
        "one-byte-less": whole[:-40],
        "foreign": b"PK\x03\x04" + whole[4:],
        "big-endian": whole[:4] + whole[4:8][::-1] + whole[8:],
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 98000000\n",
        "no-layers": whole.replace(b"llama.block_count\x04\0\0\0\x02", b"llama.block_count\x04\0\0\0\x00"),
        "more-layers": whole.replace(b"llama.block_count\x04\0\0\0\x02", b"llama.block_count\x04\0\0\0\x09"),
        "other-width": whole.replace(b"llama.embedding_length\x04\0\0\0@", b"llama.embedding_length\x04\0\0\0A"),
        "token-twice": whole.replace(b"\x01\0\0\0\0\0\0\0B\x01", b"\x01\0\0\0\0\0\0\0A\x01", 1),
        "other-splitting": whole.replace(b"\x06\0\0\0\0\0\0\0smollm", b"\x06\0\0\0\0\0\0\0smolXX"),
        "unknown-architecture": whole.replace(
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama",
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0lxxxx",
        ),
        "no-end-of-turn": whole.replace(b"<|im_end|>", b"<|im_fin|>"),
        "not-a-number": whole[:-64] + b"\xff" * 64,
    }
    assert changes[kind] != whole
    return changes[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "is not a whole GGUF file: it ends in the middle of its header"),
        ("magic-alone", "it ends in the middle of its header"),
        ("header-alone", "its tensors need"),
        ("half", "its tensors need"),
        ("one-byte-less", "its tensors need"),
        ("foreign", "instead of b'GGUF'"),
        ("big-endian", "expected 2 or 3"),
        ("text", "it starts with b'vers' instead of b'GGUF'"),
        ("no-layers", "it claims 0 layers"),
        ("more-layers", "llama.cpp cannot load"),
        ("other-width", "llama.cpp cannot load"),
        ("token-twice", "its vocabulary holds b'A' twice"),
        ("other-splitting", "unknown pre-tokenizer type"),
        ("unknown-architecture", "unknown model architecture: 'lxxxx'"),
        ("no-end-of-turn", "no token <|im_end|>; smolcls needs a model with ChatML's tokens"),
    ],
)
def test_a_damaged_file_is_an_error_and_never_the_end_of_the_process(
    tiny: Path, tmp_path: Path, kind: str, reason: str
) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged(tiny.read_bytes(), kind))
    ended = run(LOAD, path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("ModelError ")
    assert reason in ended.stdout
    assert "damaged.gguf" in ended.stdout or "vocabulary" in ended.stdout
    assert ended.stderr == ""


def test_weights_that_are_no_numbers_are_an_error(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged(tiny.read_bytes(), "not-a-number"))
    ended = run(LOAD, path)
    assert ended.stdout == (
        "BackendError llama.cpp gave logits that are not numbers; the model file may be damaged.\n"
    ), ended.stderr


def test_mutated_headers_never_end_the_process(tiny: Path, tmp_path: Path) -> None:
    """The scan refuses most of them; what it lets through, llama.cpp loads or refuses."""
    whole = tiny.read_bytes()
    begin, end = whole.index(b"<|endoftext|>"), whole.rindex(b"\x01", 0, 9_000)
    generator, paths = random.Random(11), []
    for number in range(60):
        mutated = bytearray(whole)
        for _ in range(generator.choice((1, 1, 2, 4))):
            place = generator.randrange(4, begin) if generator.random() < 0.7 else generator.randrange(begin, end)
            mutated[place] = generator.choice((0, 255, mutated[place] ^ 1 << generator.randrange(8)))
        paths.append(tmp_path / f"{number}.gguf")
        paths[-1].write_bytes(mutated)
    code = """
        import resource, sys
        import smolcls
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))  # a mutated size must not fill the machine
        for path in sys.argv[1:]:
            try:
                smolcls.load("llamacpp:" + path, threads=1).classify("hi")
                print("loaded")
            except smolcls.SmolclsError as error:
                print(type(error).__name__)
    """
    ended = run(code, *paths)
    assert ended.returncode == 0, ended.stderr
    outcomes = ended.stdout.split()
    assert len(outcomes) == len(paths)
    assert {"loaded", "ModelError"} <= set(outcomes) <= {"loaded", "ModelError", "BackendError"}


def test_models_without_a_shared_past_are_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recurrent, hybrid and encoder models would abort, or answer wrongly, where a prefix is shared."""
    binding = native.llama()
    for name in ("llama_model_is_recurrent", "llama_model_is_hybrid", "llama_model_has_encoder"):
        with monkeypatch.context() as patch:
            patch.setattr(binding, name, lambda _model: True)
            with pytest.raises(ModelError, match="is not a decoder with attention alone"):
                tiny_classifier(tiny)


def test_another_family_with_chatmls_tokens_loads(tmp_path: Path) -> None:
    """llama.cpp's own list of architectures counts, not Llama's name: a Qwen 2 of the same weights answers."""
    import gguf
    import numpy as np

    source = gguf.GGUFReader(write_tiny_gguf(tmp_path / "tiny.gguf", kv_heads=4))
    writer = gguf.GGUFWriter(tmp_path / "qwen.gguf", "qwen2")
    for key, field in source.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key.replace("llama.", "qwen2."), field.contents(), field.types[0], sub_type=inner)
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight", "attn_v.weight")):
            writer.add_tensor(tensor.name.replace("weight", "bias"), np.zeros(tensor.shape[1], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with tiny_classifier(tmp_path / "qwen.gguf") as classifier:
        assert math.fsum(classifier.classify("hi").probabilities.values()) == pytest.approx(1.0)


def test_the_reason_of_a_failure_is_this_models_own(tiny: Path, tmp_path: Path) -> None:
    for kind in ("unknown-architecture", "other-splitting"):
        (tmp_path / f"{kind}.gguf").write_bytes(damaged(tiny.read_bytes(), kind))
    with pytest.raises(ModelError, match="unknown model architecture"):
        tiny_classifier(tmp_path / "unknown-architecture.gguf")
    with pytest.raises(ModelError, match="unknown pre-tokenizer type") as caught:
        tiny_classifier(tmp_path / "other-splitting.gguf")
    assert "architecture" not in str(caught.value)


def test_the_calibration_beside_the_model_is_taken(tiny: Path, tmp_path: Path) -> None:
    path, task = tmp_path / "model.gguf", Task.load("three-type")
    path.write_bytes(tiny.read_bytes())
    with tiny_classifier(path) as plain:
        assert plain.calibration is None
        raw = plain.classify("hi")
        assert not raw.calibrated
    fitted(task, "llamacpp").save(tmp_path / build.CALIBRATION)
    with tiny_classifier(path) as calibrated:
        assert calibrated.classify("hi").calibrated
        assert calibrated.classify("hi").confidence < raw.confidence
    with tiny_classifier(path, calibration=fitted(task, "llamacpp", 1.0)) as own:
        assert own.classify("hi").probabilities == pytest.approx(raw.probabilities)


def test_a_calibration_beside_it_that_belongs_elsewhere_is_not_applied_and_says_so_once(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, task = tmp_path / "model.gguf", Task.load("three-type")
    path.write_bytes(tiny.read_bytes())
    for calibration, reason in (
        (fitted(task, "transformers"), "another backend (transformers; this one is llamacpp)"),
        (fitted(SPREAD, "llamacpp"), f"another task or another version of it (fingerprint {SPREAD.fingerprint}; this"),
        (replace(fitted(task, "llamacpp"), model="0" * 16), f"another model (fingerprint {'0' * 16}; this model's is"),
    ):
        calibration.save(tmp_path / build.CALIBRATION)
        caplog.clear()
        with tiny_classifier(path) as classifier:
            assert classifier.calibration is None
            assert not classifier.classify("hi").calibrated
        [record] = caplog.records
        assert (record.name, record.levelname) == ("smolcls", "WARNING")
        assert f"calibration.json was fitted for {reason}" in record.getMessage()
        assert record.getMessage().endswith("is not applied. Fit it again with: smolcls calibrate")


def test_a_calibration_of_this_very_file_is_taken(tiny: Path, tmp_path: Path) -> None:
    path, task = tmp_path / "model.gguf", Task.load("three-type")
    path.write_bytes(tiny.read_bytes())
    own = replace(fitted(task, "llamacpp"), model=sha256(path)[:16])
    own.save(tmp_path / build.CALIBRATION)
    with tiny_classifier(path) as classifier:
        assert classifier.calibration == own
        assert classifier.calibration_path == tmp_path / build.CALIBRATION
    with pytest.raises(ConfigError, match="fitted for another model"):
        tiny_classifier(path, calibration=replace(own, model="0" * 16))


def test_a_calibration_that_is_damaged_or_given_for_another_task_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny.read_bytes())
    with pytest.raises(ConfigError, match="fitted for another task"):
        tiny_classifier(path, calibration=fitted(SPREAD, "llamacpp"))
    (tmp_path / build.CALIBRATION).write_text("{}")
    with pytest.raises(ConfigError, match="is not a calibration that smolcls wrote"):
        tiny_classifier(path)
