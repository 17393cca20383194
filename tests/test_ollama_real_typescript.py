"""The TypeScript example against a real server, and without one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("ollama")

from real_ollama import PATIENCE, WORKFLOW, Process, free_address

from smolcls.backends.ollama import OllamaClassifier

pytest_plugins = ["real_ollama"]
pytestmark = [pytest.mark.ollama, pytest.mark.usefixtures("no_proxies")]

EXAMPLE = Path(__file__).parents[1] / "examples" / "typescript"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, compiled."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs Node.js and npm")
    folder = tmp_path_factory.mktemp("typescript")
    for name in ("package.json", "tsconfig.json", "classify.ts"):
        shutil.copy(EXAMPLE / name, folder)
    install = [npm, "install", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        pytest.skip(f"npm cannot fetch the packages of the example: {done.stderr[-300:]}")
    built = subprocess.run([npm, "run", "build"], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "dist" / "classify.js"


def typescript(example: Path, *texts: str, timeout: float = PATIENCE, **variables: str) -> list[list[str]]:
    """What the example prints, in columns: label, who decided, text."""
    environment = {**os.environ, "SMOLCLS_TIMEOUT_MS": str(round(timeout * 1000)), **variables}
    command = ["node", str(example), *texts]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=2 * PATIENCE, check=True)
    assert done.stderr == ""
    return [line.split("\t") for line in done.stdout.splitlines()]


def test_typescript_takes_sure_answers_of_the_model(example: Path, ollama_host: str, remote: OllamaClassifier) -> None:
    texts = ["/help", "what is a semaphore?", "rename parseRow to readRow in the whole project", "word " * 3000]
    rows = typescript(example, *texts, OLLAMA_HOST=ollama_host, SMOLCLS_MODEL=remote.model)
    for text, (label, by, _) in zip(texts[:3], rows, strict=False):
        expected = remote.classify(text)
        assert expected.label_mass is not None
        assert (label, by) == (expected.label, f"{remote.model} ({expected.confidence * expected.label_mass:.3f})")
    assert len(rows) == 4


def test_typescript_falls_back_on_its_own_rules(example: Path, ollama_host: str, own_ollama: Process) -> None:
    texts = ("/help", "what is a semaphore?", WORKFLOW)
    own_ollama.signal(signal.SIGSTOP)
    for host, model, timeout, reason in (
        (free_address(), "three-type", PATIENCE, "connect ECONNREFUSED"),
        (ollama_host, "smolcls-none", PATIENCE, "Ollama says 404"),
        (own_ollama.address, "three-type", 0.3, "The operation was aborted due to timeout"),
    ):
        rows = typescript(example, *texts, timeout=timeout, OLLAMA_HOST=host, SMOLCLS_MODEL=model)
        assert [row[0] for row in rows] == ["command", "prompt", "workflow"]
        assert all(row[1].startswith(f"own rules ({reason}") for row in rows), rows
