"""Backends that hang, as an installed package, for the tests of what waits for them in another process."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages import PATIENCE

HANGS = """
import subprocess, sys, threading
from pathlib import Path
from smolcls.backends.fake import FakeClassifier

def hang(where):
    with open(Path(__file__).with_name("held"), "w") as held:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=held)
        print("stuck in", where, file=sys.stderr, flush=True)
        threading.Event().wait()

class InLoad(FakeClassifier):
    def __init__(self, *arguments, **options):
        hang("load")

class InCall(FakeClassifier):
    def score_batch(self, texts):
        hang("call")
"""
FILES = {
    "hangs.py": HANGS,
    "hangs_in_import.py": "import hangs\nhangs.hang('import')\n",
    "hangs-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: hangs\nVersion: 1.0\n",
    "hangs-1.0.dist-info/entry_points.txt": "[smolcls.backends]\nhangs-in-import = hangs_in_import:Backend\n"
    "hangs-in-load = hangs:InLoad\nhangs-in-call = hangs:InCall\n",
}


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """`hangs-in-import`, `hangs-in-load` and `hangs-in-call`, for processes that find `folder` in PYTHONPATH.

    Each starts a child before it hangs; in the end there must have been one, and none may be left.
    """
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    os.mkfifo(folder / "held")
    held = os.open(folder / "held", os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield
        # Readable once it was opened for writing and all who did so have ended.
        assert select.select([held], [], [], PATIENCE)[0], "a child lives on, or none was started"
    finally:
        os.close(held)
