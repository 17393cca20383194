"""Calling the command line from a test."""

from __future__ import annotations

import json
import sys
from typing import Any

from click.testing import CliRunner, Result

from smolcls.cli import group

PROGRAM = [sys.executable, "-c", "from smolcls.cli import main; main()"]
TIMEOUT = 120


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(group, arguments, input=stdin)


def classify(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return run("classify", "--backend", "fake:workflow", *arguments, stdin=stdin)


def objects(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]
