"""Which chain answers: the environment, a file, or the default."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import platformdirs
import pytest
from test_settings_file import SPAM, written

from smolcls import ConfidenceRouter, ConfigError, MissingExtraError, Stage, registry
from smolcls.backends.fake import FakeClassifier
from smolcls.settings import SURE, default_router, default_stages, embedded, router_from


def specifications(router: ConfidenceRouter) -> list[object]:
    return [stage.classifier for stage in router.stages]


def embedded_is(
    monkeypatch: pytest.MonkeyPatch, onnx: str | Exception | None, llamacpp: str | Exception | None
) -> None:
    """Let there be an adapter for every task, and each of its backends available (None), not so, or not importable."""

    def backend(reason: str | Exception | None) -> type[FakeClassifier]:
        class Backend(FakeClassifier):
            @classmethod
            def why_unavailable(cls) -> str | None:
                if isinstance(reason, Exception):
                    raise reason
                return reason

        return Backend

    find, made = registry.find, {"onnx": backend(onnx), "llamacpp": backend(llamacpp)}
    monkeypatch.setattr("smolcls.build.shipped_adapter", lambda task: Path("adapter"))
    monkeypatch.setattr(registry, "find", lambda name: made.get(name) or find(name))


def test_the_environment_names_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOLCLS_CHAIN", " fake:prompt@0.995 , ollama:three-type:latest@0.8,fake:workflow, ")
    router = default_router()
    assert specifications(router) == ["fake:prompt", "ollama:three-type:latest", "fake:workflow"]
    assert [stage.threshold for stage in router.stages] == [0.995, 0.8, 0.0]
    assert router_from("fake:workflow").classify("a").label == "workflow"


def test_the_environment_names_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(Path("smolcls.toml"), '[[stage]]\nuse = "fake:workflow"\n')
    path = written(tmp_path / "own.toml", '[[stage]]\nuse = "fake:prompt"\n')
    monkeypatch.setenv("SMOLCLS_CHAIN", str(path))
    assert default_router().classify("a").label == "prompt"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("SMOLCLS_CHAIN", "~/own.toml")
    assert default_router().classify("a").label == "prompt"


def test_a_list_may_end_with_a_toml_file_of_its_own() -> None:
    assert specifications(router_from("rules@0.99,rules:own.toml")) == ["rules", "rules:own.toml"]
    assert specifications(router_from("rules:own.toml")) == ["rules:own.toml"]


def test_the_environment_names_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    written(Path("smolcls.toml"), '[[stage]]\nuse = "fake:workflow"\n')
    embedded_is(monkeypatch, None, None)
    monkeypatch.setenv("SMOLCLS_CHAIN", "default")
    assert default_router().stages == default_stages()


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ("rules@2,rules", "found 'rules@2': A stage's threshold must be a number between 0 and 1; found 2.0."),
        ("rules@high", "found 'rules@high': could not convert string to float: 'high'."),
        ("rules,@0.8", "found '@0.8': it names no backend."),
        (",", "A router needs at least one stage; found none."),
        ("none.toml", "none.toml cannot be read as TOML: "),
        ("~nobody-here/none.toml", "~nobody-here/none.toml cannot be read as TOML: "),
    ],
)
def test_an_environment_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, chain: str, message: str) -> None:
    monkeypatch.setenv("SMOLCLS_CHAIN", chain)
    with pytest.raises(ConfigError) as caught:
        default_router()
    assert str(caught.value).startswith("SMOLCLS_CHAIN: ")
    assert message in str(caught.value)
    with pytest.raises(ConfigError) as direct:
        router_from(chain)
    assert "SMOLCLS_CHAIN" not in str(direct.value)


def test_the_working_folder_comes_before_the_users_and_both_before_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def users(name: str) -> Path:
        asked.append(name)
        return tmp_path / name

    monkeypatch.setattr("platformdirs.user_config_path", users)
    embedded_is(monkeypatch, None, None)
    assert default_router().stages == default_stages()
    written(tmp_path / "smolcls" / "smolcls.toml", '[[stage]]\nuse = "fake:prompt"\n')
    assert default_router().classify("a").label == "prompt"
    working = written(Path("smolcls.toml"), '[[stage]]\nuse = "fake:workflow"\n')
    assert default_router().classify("a").label == "workflow"
    assert set(asked) == {"smolcls"}
    working.write_text("colour = 1")
    with pytest.raises(ConfigError) as caught:
        default_router()
    assert str(caught.value).startswith(str(working.absolute()))


@pytest.mark.skipif(os.name == "nt", reason="the variable is not asked there")
def test_the_users_configuration_folder_is_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = platformdirs.user_config_path("smolcls")
    if tmp_path not in folder.parents:
        pytest.skip("this system keeps its configuration elsewhere")
    written(folder / "smolcls.toml", '[[stage]]\nuse = "fake:prompt"\n')
    assert default_router().classify("a").label == "prompt"


def test_a_working_folder_that_is_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded_is(monkeypatch, None, None)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    try:
        (tmp_path / "gone").rmdir()
    except OSError:
        pytest.skip("this system keeps a working folder")
    assert default_router().stages == default_stages()
    monkeypatch.undo()


# The default chain


COMMANDS = Stage("rules", accept={"command": 0.99})
N_GRAMS, RULES = Stage("linear", pool={"rules": 0.29, "linear": 0.91}), Stage("rules")


def test_the_default_with_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded_is(monkeypatch, None, None)
    pooling = Stage("onnx", pool={"linear": 0.41, "onnx": 0.82})
    assert default_stages() == [COMMANDS, replace(N_GRAMS, threshold=SURE), pooling, N_GRAMS, RULES]
    assert default_stages(SPAM) == [Stage("onnx"), RULES], "a task without n-grams, and without commands"
    assert specifications(default_router(SPAM)) == specifications(router_from("default", SPAM)) == ["onnx", "rules"]


@pytest.mark.parametrize("reason", ["not installed", MissingExtraError("gone"), ConfigError("does not load")])
def test_the_default_without_the_embedded_model(monkeypatch: pytest.MonkeyPatch, reason: str | Exception) -> None:
    embedded_is(monkeypatch, reason, reason)
    assert default_stages() == [COMMANDS, N_GRAMS, RULES]
    assert default_stages(SPAM) == [RULES]


@pytest.mark.parametrize("reason", ["not installed", MissingExtraError("gone"), ConfigError("does not load")])
def test_the_embedded_model_runs_on_llama_cpp_where_onnx_runtime_is_missing(
    monkeypatch: pytest.MonkeyPatch, reason: str | Exception
) -> None:
    embedded_is(monkeypatch, reason, None)
    assert embedded() == "llamacpp"
    assert default_stages(SPAM) == [Stage("llamacpp"), RULES]
    embedded_is(monkeypatch, None, reason)
    assert embedded() == "onnx"
    embedded_is(monkeypatch, reason, reason)
    assert embedded() is None


def test_the_default_without_an_adapter_for_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded_is(monkeypatch, None, None)
    monkeypatch.setattr("smolcls.build.shipped_adapter", lambda task: None)
    assert default_stages() == [COMMANDS, N_GRAMS, RULES]


def test_the_default_without_the_models_package_answers_from_n_grams(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded_is(monkeypatch, "not installed", "not installed")
    router = default_router()
    assert [router.classify(text).backend for text in ("/help", "what is recursion?")] == ["rules", "linear"]
