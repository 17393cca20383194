"""`smolcls train` and `smolcls export`."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner, Result
from tiny_run import SETTINGS, config, needs_training

from smolcls import BackendError, BackendUnavailableError, Task, prompt
from smolcls.cli.export import command as export_command
from smolcls.cli.train import command as train_command
from smolcls.export import modelfile
from smolcls.train import Run, TrainConfig
from smolcls.train.measure import measure
from smolcls.train.publish import create
from smolcls.train.steps import STEPS


def run(*arguments: str) -> Result:
    return CliRunner().invoke(train_command, arguments)


def options(settings: TrainConfig) -> list[str]:
    flags = [part for name, value in SETTINGS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return ["--data", str(settings.data), "--base", str(settings.base), "--out", str(settings.out), *flags]


@needs_training
def test_one_command_goes_from_rows_to_a_modelfile_and_says_how_to_use_it(tmp_path: Path) -> None:
    settings = config(tmp_path)
    result = run(*options(settings), "--epochs", "1")
    assert result.exit_code == 0, result.output
    made = Run(settings.out)
    assert made.modelfile.is_file()
    assert made.config().epochs == 1.0
    assert f"trained {made.model}" in result.stdout
    assert f"  ollama create three-type -f {made.modelfile}" in result.stdout
    assert "validation accuracy" in result.stderr
    again = CliRunner().invoke(export_command, [str(made.folder), "--step", "modelfile"])
    assert again.exit_code == 0, again.output
    assert f"exported {made.model}" in again.stdout


class Ollama(BaseHTTPRequestHandler):
    """As much of an Ollama server as `create` needs; `asked` holds what came."""

    asked: ClassVar[list[tuple[str, str, bytes]]] = []
    status = 200

    def answer(self, status: int, content: bytes = b"") -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.asked.append((self.command, self.path, body))
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.answer(404)

    def do_POST(self) -> None:
        create = self.path == "/api/create"
        self.answer(self.status if create else 201, b'{"status": "success", "error": "no room"}' if create else b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Ollama.asked, Ollama.status = [], 200
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Ollama)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture
def finished(tmp_path: Path) -> Run:
    made = Run.start(TrainConfig(out=tmp_path / "run"), Task.load("three-type"))
    made.model.write_bytes(b"GGUF and so on")
    return made


def test_the_model_is_handed_to_ollama_with_all_that_the_modelfile_says(finished: Run, server: str) -> None:
    pytest.importorskip("ollama")
    create(finished, "mine", host=server)
    digest = "sha256:" + hashlib.sha256(b"GGUF and so on").hexdigest()
    assert ("POST", f"/api/blobs/{digest}", b"GGUF and so on") in Ollama.asked
    _, path, body = Ollama.asked[-1]
    asked = json.loads(body)
    assert path == "/api/create"
    assert (asked["model"], asked["files"]) == ("mine", {"model.gguf": digest})
    assert asked["template"] == modelfile.template()
    assert asked["system"] == prompt.system_message(Task.load("three-type"))
    assert asked["parameters"]["temperature"] == 0
    assert "from" not in asked


def test_a_server_that_refuses_or_is_not_there_is_told_of(finished: Run, server: str) -> None:
    pytest.importorskip("ollama")
    Ollama.status = 500
    with pytest.raises(BackendError, match="no room"):
        create(finished, "mine", host=server)
    with pytest.raises(BackendUnavailableError, match="Start it with `ollama serve`"):
        create(finished, "mine", host="http://127.0.0.1:9")


def test_the_help_names_every_engine_preset_and_step() -> None:
    text = run("--help").output
    for word in (
        "auto",
        "shared",
        "trl",
        "unsloth",
        "linear",
        "stable",
        "regularised",
        "low-memory",
        "--resume",
        "--rank",
    ):
        assert word in text, word
    steps = CliRunner().invoke(export_command, ["--help"]).output
    for name in STEPS:
        assert name in steps, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "fast", "--out", "x"), "'fast' is not one of 'stable', 'regularised', 'low-memory'"),
        ((), "Missing option '--out'"),
    ],
)
def test_wrong_usage_is_refused(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_metrics_of_a_small_table_are_those_counted_by_hand() -> None:
    from math import log

    rows = [[log(0.9), log(0.1)], [log(0.8), log(0.2)], [log(0.3), log(0.7)], [log(0.6), log(0.4)]]
    found = measure(["yes", "no"], rows, [0, 0, 1, 1])
    assert found["accuracy"] == 0.75
    assert found["confusion"] == [[2, 0], [1, 1]]
    assert found["by_label"]["yes"] == {
        "rows": 2,
        "recall": 1.0,
        "precision": pytest.approx(2 / 3),
        "f1": pytest.approx(0.8),
    }
    assert found["by_label"]["no"]["recall"] == 0.5
    # Each confidence has a bin of its own: gaps .1, .2 and .3 where right, .6 where wrong.
    assert found["ece"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.6) / 4)
    assert found["nll"] == pytest.approx(-(log(0.9) + log(0.8) + log(0.7) + log(0.4)) / 4)
