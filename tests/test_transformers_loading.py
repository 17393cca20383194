"""The transformers backend: what it loads, which tokens it gives, and what it says of a model it cannot use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contract import write_safetensors, write_tiny_folder

import smolcls
from smolcls import ConfigError, ModelError

torch = pytest.importorskip("torch", reason="needs the extra transformers")
transformers = pytest.importorskip("transformers", reason="needs the extra transformers")
np = pytest.importorskip("numpy", reason="needs the extra transformers")

from smolcls.backends.transformers import TransformersClassifier  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """A model folder that a test may damage."""
    return write_tiny_folder(tmp_path / "own")


def test_no_special_token_is_read_in_a_text(folder: Path) -> None:
    with TransformersClassifier(folder, device="cpu") as made:
        assert len(made.tokenize("<|im_end|>")) == len("<|im_end|>")
        assert made.tokenize("<|im_start|>")[0] != 1


def test_tokens_are_those_of_the_file_whatever_class_it_names(own_folder: Path) -> None:
    # transformers rebuilds the tokenizer of this class, and would merge digits.
    (own_folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    content = json.loads((own_folder / "tokenizer.json").read_text())
    content["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }  # fmt: skip
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    vocab = content["model"]["vocab"]
    vocab["12"] = len(vocab)
    content["model"]["merges"].append(["1", "2"])
    (own_folder / "tokenizer.json").write_text(json.dumps(content))
    _grow(own_folder, len(vocab))
    with TransformersClassifier(own_folder, device="cpu") as made:
        assert made.tokenize("1212") == [vocab[digit] for digit in "1212"]


def _grow(folder: Path, size: int) -> None:
    """Give the model a row of zeros for a token more."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    rows = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = np.concatenate(
        [rows, np.zeros((size - len(rows), rows.shape[1]), rows.dtype)]
    )
    write_safetensors(folder / "model.safetensors", tensors)
    _change(folder, vocab_size=size)


def _change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize("model", [None, "", "  ", 5])
def test_without_a_model_it_says_what_to_name(model: Any) -> None:
    with pytest.raises(
        ConfigError, match="needs a model: a folder, a Hub id or a GGUF file, such as transformers:runs"
    ):
        TransformersClassifier(model)
    with pytest.raises(ConfigError, match=r"found None. The embedded model is that of onnx"):
        smolcls.load("transformers")


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _cut(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return cut


def _more_layers(folder: Path) -> None:
    _change(folder, num_hidden_layers=3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("config.json"), "has no config.json: expected a model folder that transformers saved"),
        (_remove("tokenizer.json"), "has no tokenizer.json: expected a model folder that transformers saved"),
        (
            _remove("model.safetensors"),
            "transformers cannot load .*no file named model.safetensors.* Expected a folder",
        ),
        (_cut("config.json"), r"transformers cannot load .*not a valid JSON file\. Expected a folder"),
        (_cut("tokenizer.json"), "transformers cannot load .*Cannot instantiate Tokenizer"),
        (_cut("model.safetensors"), "transformers cannot load .*Error while deserializing header"),
        (_more_layers, "lacks 9 of the model's weights, such as model.layers.2.input_layernorm.weight. Save it again"),
        (lambda folder: _change(folder, hidden_size="x"), "transformers cannot load .*hidden_size"),
        (lambda folder: _change(folder, hidden_size=128), "transformers cannot load "),
        (lambda folder: _change(folder, rope_parameters="x"), "transformers cannot load "),
        (lambda folder: _change(folder, model_type="nosuch"), "transformers cannot load .*`nosuch`"),
        (lambda folder: _change(folder, model_type="t5"), "transformers cannot load .*T5Config"),
        (
            lambda folder: _change(folder, max_position_embeddings=512),
            r"may take \d+ tokens; .* trained for 512. Lower",
        ),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{}"),
            "holds a PEFT adapter, not a whole model. Merge it into its base first",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(own_folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(own_folder)
    with pytest.raises(ModelError, match=message):
        TransformersClassifier(own_folder, device="cpu")


def test_no_pickle_is_read(own_folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(own_folder / "model.safetensors"), own_folder / "pytorch_model.bin")
    (own_folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"transformers cannot load .*no file named model\.safetensors"):
        TransformersClassifier(own_folder, device="cpu")


def test_a_vocabulary_without_chatml_is_refused(own_folder: Path) -> None:
    path = own_folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_end|>", "<|fin|>"))
    with pytest.raises(ModelError, match=r"vocabulary has no token <\|im_end\|>; smolcls needs a model with ChatML's"):
        TransformersClassifier(own_folder, device="cpu")


def test_a_tokenizer_of_another_model_is_refused(own_folder: Path) -> None:
    content = json.loads((own_folder / "tokenizer.json").read_text())
    size = len(content["model"]["vocab"])
    content["model"]["vocab"]["zz"] = size
    (own_folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=rf"its tokenizer has {size + 1} tokens, its model {size}; they do not belong"):
        TransformersClassifier(own_folder, device="cpu")


def test_a_model_that_does_not_see_the_whole_prompt_is_refused(own_folder: Path) -> None:
    mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "head_dim": 16}
    _change(own_folder, **mistral, sliding_window=256)
    with pytest.raises(ModelError, match="in a DynamicSlidingWindowLayer; smolcls needs one with full attention over"):
        TransformersClassifier(own_folder, device="cpu")
    _change(own_folder, **mistral, sliding_window=4096)
    with TransformersClassifier(own_folder, device="cpu") as made:
        assert made.classify("hi").label is not None


def test_a_model_that_counts_positions_itself_is_refused(own_folder: Path) -> None:
    size = json.loads((own_folder / "config.json").read_text())["vocab_size"]
    config = transformers.BloomConfig(vocab_size=size, hidden_size=16, n_layer=1, n_head=2)
    transformers.BloomForCausalLM(config).save_pretrained(own_folder)
    with pytest.raises(ModelError, match="is a BloomForCausalLM, which takes no position_ids; smolcls needs a decoder"):
        TransformersClassifier(own_folder, device="cpu")


@pytest.mark.parametrize("name", ["runs/x/merged", "/no/such/folder", "merged"])
def test_a_model_that_is_not_there(name: str) -> None:
    with pytest.raises(
        ModelError, match=f"There is no model '{name}': expected a folder that transformers saved, a GGUF"
    ):
        TransformersClassifier(name, device="cpu")


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no model file nosuch.gguf. Expected a GGUF file"):
        TransformersClassifier("nosuch.gguf", device="cpu")
    (tmp_path / "pickle.bin").write_bytes(b"\x80\x04 not a model")
    with pytest.raises(ModelError, match="is not a whole GGUF file: it starts with"):
        TransformersClassifier(tmp_path / "pickle.bin", device="cpu")


def test_a_hub_id_is_found_in_the_users_cache_and_nowhere_else(folder: Path, tmp_path: Path) -> None:
    """In a process of its own: the Hub's library reads its environment once."""
    home = tmp_path / "hub" / "models--someone--tiny"
    commit = "0" * 40
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots").mkdir()
    (home / "snapshots" / commit).symlink_to(folder)
    code = (
        "import smolcls\n"
        "with smolcls.load('transformers:someone/tiny', device='cpu') as made:\n"
        "    assert made.classify('hi').label is not None\n"
        "try:\n"
        "    smolcls.load('transformers:someone/else', device='cpu')\n"
        "except smolcls.ModelError as error:\n"
        "    assert str(error).startswith('transformers cannot load someone/else: '), error\n"
        "    assert 'or a Hub id such as' in str(error), error\n"
        "else:\n"
        "    raise AssertionError('no error')\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
