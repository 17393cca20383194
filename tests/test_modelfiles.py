"""The Modelfiles of the repository are what the code writes."""

from __future__ import annotations

from pathlib import Path

from smolcls.export import modelfile
from smolcls.task import Task

FOLDER = Path(__file__).parent.parent / "modelfiles"


def test_the_three_type_modelfile_is_the_generated_one() -> None:
    written = (FOLDER / "three-type-smollm2-135m.Modelfile").read_text(encoding="utf-8")
    assert written == modelfile.render(Task.load("three-type"), "model.gguf")
