"""The Modelfiles of the repository are what the code writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from smolcls.export import modelfile
from smolcls.task import Task

FOLDER = Path(__file__).parent.parent / "modelfiles"


@pytest.mark.parametrize("size", ["135m", "360m", "1.7b"])
def test_a_three_type_modelfile_is_the_generated_one(size: str) -> None:
    name = f"three-type-smollm2-{size}"
    written = (FOLDER / f"{name}.Modelfile").read_text(encoding="utf-8")
    assert written == modelfile.render(Task.load("three-type"), f"{name}.gguf")


def test_there_are_no_others() -> None:
    assert len(list(FOLDER.iterdir())) == 3
