"""Models on an Ollama server, against a local one that keeps what it is sent; and reading Modelfiles."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from command_line import run

from smolcls import BackendError, BackendUnavailableError, ConfigError, ModelError, Task, prompt, publish
from smolcls.export import modelfile

TASK = Task.load("three-type")
WEIGHTS = b"GGUF and so on" * 100_000
DIGEST = "sha256:" + hashlib.sha256(WEIGHTS).hexdigest()


class Ollama(BaseHTTPRequestHandler):
    """As much of an Ollama server as these functions need."""

    blobs: ClassVar[dict[str, bytes]] = {}
    models: ClassVar[dict[str, dict[str, Any]]] = {}
    refusal: ClassVar[str | None] = None
    label: ClassVar[str] = "workflow"
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(200 if self.path.rpartition("/")[2] in self.blobs else 404)

    def do_GET(self) -> None:
        entries = [
            {"model": f"{name}:latest", "size": 105_000_000, "details": {"quantization_level": "Q4_K_M"}}
            for name in self.models
        ]
        self.answer(200, {"/api/version": {"version": "0.34.0"}}.get(self.path, {"models": entries}))

    def do_DELETE(self) -> None:
        name = json.loads(self.body())["model"]
        found = self.models.pop(name, None)
        self.answer(*((200, {}) if found is not None else (404, {"error": f"model '{name}' not found"})))

    def do_POST(self) -> None:
        body = self.body()
        if self.path.startswith("/api/blobs/"):
            self.blobs[self.path.rpartition("/")[2]] = body
            return self.answer(201)
        asked = json.loads(body)
        if self.refusal is not None:
            return self.answer(200, {"error": self.refusal})
        if self.path == "/api/push":
            return self.answer(200, {"status": "pushing", "total": 100, "completed": 60})
        if self.path == "/api/create":
            self.models[asked["model"]] = asked
            return self.answer(200, {"status": "success"})
        top = [{"token": self.label, "logprob": -0.01}]
        answer = {"model": asked["model"], "response": self.label, "done": True}
        return self.answer(200, {**answer, "logprobs": [{**top[0], "top_logprobs": top}]})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, status: int, content: object = None) -> None:
        written = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(written)))
        self.end_headers()
        self.wfile.write(written)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(no_proxies: None) -> Iterator[str]:
    pytest.importorskip("ollama")
    Ollama.blobs, Ollama.models, Ollama.refusal, Ollama.label = {}, {}, None, "workflow"
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Ollama)
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "model.gguf").write_bytes(WEIGHTS)
    modelfile.write(TASK, "model.gguf", tmp_path / "Modelfile")
    return tmp_path / "Modelfile"


# Making, removing, pushing


def test_the_file_is_sent_once_with_all_that_the_modelfile_says(file: Path, server: str) -> None:
    told: list[tuple[int, int]] = []
    assert publish.create("mine", file, host=server, progress=lambda done, total: told.append((done, total)))
    assert Ollama.blobs == {DIGEST: WEIGHTS}
    assert told[-1] == (len(WEIGHTS), len(WEIGHTS))
    assert len(told) > 1
    asked = Ollama.models["mine"]
    assert asked["files"] == {"model.gguf": DIGEST}
    assert asked["template"] == modelfile.template()
    assert asked["system"] == prompt.system_message(TASK)
    assert asked["license"] == modelfile.LICENCE
    assert asked["parameters"] == {**modelfile.parameters(TASK), "stop": ["<|im_end|>"]}
    assert "from" not in asked
    told.clear()
    assert not publish.create("other", file, host=server, progress=lambda done, total: told.append((done, total)))
    assert (told, sorted(Ollama.models)) == ([], ["mine", "other"])


def test_a_server_that_refuses_or_is_not_there_is_told_of(file: Path, server: str) -> None:
    Ollama.refusal = "no room"
    with pytest.raises(BackendError, match="no room"):
        publish.create("mine", file, host=server)
    with pytest.raises(BackendError, match="no room"):
        publish.push("mine", host=server)
    with pytest.raises(BackendUnavailableError, match="Start it with `ollama serve`"):
        publish.create("mine", file, host="http://127.0.0.1:9")


def test_a_model_is_removed_once(file: Path, server: str) -> None:
    publish.create("mine", file, host=server)
    publish.remove("mine", host=server)
    assert Ollama.models == {}
    with pytest.raises(ModelError, match="Expected the model 'mine' in Ollama"):
        publish.remove("mine", host=server)


def test_a_push_tells_of_its_bytes(server: str) -> None:
    told: list[tuple[int, int]] = []
    publish.push("someone/mine", host=server, progress=lambda done, total: told.append((done, total)))
    assert told == [(60, 100)]


# Status


def test_the_status_of_a_model_that_is_there(file: Path, server: str) -> None:
    publish.create("three-type", file, host=server)
    found = publish.status(host=server)
    assert (found.version, found.size_bytes, found.quantisation) == ("0.34.0", 105_000_000, "Q4_K_M")
    assert (found.loaded, found.problem) == (True, None)
    assert found.label_mass == pytest.approx(0.990, abs=0.001)
    assert found.latency_ms is not None


@pytest.mark.parametrize(
    ("label", "named", "problem"),
    [
        ("workflow", "other", "has no model 'other'. Make it with: smolcls ollama create other"),
        ("banana", "three-type", "Only 0.0% of the model's probability stands on the labels of the task three-type"),
    ],
)
def test_the_status_says_what_to_do(file: Path, server: str, label: str, named: str, problem: str) -> None:
    publish.create("three-type", file, host=server)
    Ollama.label = label
    assert problem in str(publish.status(named, host=server).problem)


def test_the_status_of_no_server() -> None:
    pytest.importorskip("ollama")
    found = publish.status(host="127.0.0.1:9")
    assert (found.version, found.size_bytes, found.label_mass) == (None, None, None)
    assert "Start it with `ollama serve`" in str(found.problem)


# The commands


def test_the_commands_make_show_and_remove_a_model(file: Path, server: str) -> None:
    made = run("ollama", "create", "three-type", "--modelfile", str(file), "--host", server)
    assert made.exit_code == 0, made.output
    assert '  ollama run three-type "a text"' in made.stdout
    again = run("ollama", "create", "second", "--run", str(file.parent), "--host", server)
    assert "second is there; the server had its file already" in again.stdout
    shown = run("ollama", "status", "--host", server)
    assert shown.exit_code == 0, shown.output
    assert "answers, version 0.34.0" in shown.stdout
    assert "three-type: 105 MB, Q4_K_M, loaded" in shown.stdout
    assert json.loads(run("ollama", "status", "--json", "--host", server).stdout)["problem"] is None
    assert run("ollama", "push", "second", "--host", server).stdout == "pushed second\n"
    assert run("ollama", "rm", "second", "--host", server).stdout == "removed second\n"
    missing = run("ollama", "status", "second", "--host", server)
    assert (missing.exit_code, "Make it with: smolcls ollama create second" in missing.stdout) == (1, True)


def test_two_sources_are_refused(file: Path) -> None:
    result = run("ollama", "create", "x", "three-type", "--modelfile", str(file))
    assert (result.exit_code, "Name one of TASK, --run and --modelfile." in result.output) == (2, True)


# Modelfiles


def test_a_written_modelfile_is_read_back(file: Path) -> None:
    said = modelfile.read(file)
    assert said.model == file.parent / "model.gguf"
    assert said.texts == {
        "template": modelfile.template(), "system": prompt.system_message(TASK), "license": modelfile.LICENCE,
    }  # fmt: skip
    assert said.parameters == {**modelfile.parameters(TASK), "stop": ["<|im_end|>"]}


def test_a_modelfile_of_other_hands_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "Modelfile").write_text(
        '# a remark\n\nfrom m.gguf\nparameter temperature 0.5\nPARAMETER stop A\nPARAMETER stop "B C"\n'
        'PARAMETER use_mmap false\nPARAMETER x y\nSYSTEM Be brief. \nTEMPLATE "{{ .Prompt }}"\nLICENSE """\nMIT\n"""',
        encoding="utf-8",
    )
    said = modelfile.read(tmp_path / "Modelfile")
    assert said.parameters == {"temperature": 0.5, "stop": ["A", "B C"], "use_mmap": False, "x": "y"}
    assert said.texts == {"system": "Be brief.", "template": "{{ .Prompt }}", "license": "\nMIT\n"}


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("", ConfigError, "has no FROM"),
        ("FROM ./none.gguf", ModelError, "there is no such file. Build it with `smolcls build`"),
        ("FROM llama3", ModelError, "for a model of Ollama's registry, use Ollama's own command"),
        ("FROM ./m.gguf\nADAPTER ./a", ConfigError, "has the instruction ADAPTER; expected one FROM and TEMPLATE"),
        ("FROM ./m.gguf\nFROM ./m.gguf", ConfigError, "has the instruction FROM twice"),
        ("FROM ./m.gguf\nPARAMETER stop", ConfigError, "has the PARAMETER 'stop'; expected a name and a value"),
        ("FROM ./m.gguf\n???", ConfigError, r"has the line '\?\?\?'; expected an instruction and its value"),
    ],
)
def test_a_modelfile_that_cannot_be_handed_on_is_refused(
    tmp_path: Path, text: str, kind: type[Exception], message: str
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "Modelfile").write_text(text, encoding="utf-8")
    with pytest.raises(kind, match=message):
        modelfile.read(tmp_path / "Modelfile")


def test_a_missing_modelfile_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected a Modelfile at"):
        modelfile.read(tmp_path / "Modelfile")
