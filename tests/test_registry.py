"""Backends by name, from entry points."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest

import smolcls
from smolcls import Classifier, ConfigError, MissingExtraError, Scores, registry
from smolcls.backends.fake import FakeClassifier

Install = Callable[..., None]

STRANGER = """
from smolcls import Classifier, MissingExtraError, Scores

class Good(Classifier):
    name = "good"

    def __init__(self, argument="none", *, colour="red", task=None):
        super().__init__(task=task)
        self.argument, self.colour = argument, colour

    def score_batch(self, texts):
        return [Scores((-0.1, -3.0, -3.0)) for _ in texts]

class Buggy(Good):
    def __init__(self, **options):
        super().__init__()
        helper(1, 2)

def helper(one):
    raise AssertionError

class Abstract(Classifier):
    pass

class OwnSpec(Good):
    @classmethod
    def from_spec(cls, argument, *, size=1):
        return cls(argument, colour=str(size))

    @classmethod
    def why_unavailable(cls):
        return "it is only a test"

def function():
    pass
"""


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Install]:
    """Pretend that packages with these modules and entry points are installed beside the built-in ones."""
    found = list(entry_points(group=registry.GROUP))
    monkeypatch.setattr(registry, "entry_points", lambda group: found)
    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []

    def add(name: str, value: str, source: str = STRANGER) -> None:
        module = value.partition(":")[0]
        (tmp_path / f"{module}.py").write_text(source)
        modules.append(module)
        found.append(EntryPoint(name, value, registry.GROUP))
        registry._entry_points.cache_clear()

    registry._entry_points.cache_clear()
    yield add
    registry._entry_points.cache_clear()
    for module in modules:
        sys.modules.pop(module, None)


def test_the_built_in_backends_are_entry_points_like_any() -> None:
    assert set(registry.names()) >= {"fake", "llamacpp", "ollama", "onnx", "rules", "transformers"}
    assert registry.names() == sorted(registry.names())
    assert registry.find("fake") is FakeClassifier


def test_load_passes_the_argument_and_the_options() -> None:
    classifier = smolcls.load("fake:workflow", confidence=0.7)
    assert classifier.classify("x").label == "workflow"
    assert classifier.classify("x").confidence == pytest.approx(0.7)
    assert smolcls.load("fake").classify("x").label == "command"


def test_an_argument_may_hold_colons(install: Install) -> None:
    install("good", "stranger_colons:Good")
    loaded = smolcls.load("good:llama3.2:3b")
    assert loaded.argument == "llama3.2:3b"  # type: ignore[attr-defined]
    assert smolcls.load("good:").argument == ""  # type: ignore[attr-defined]


def test_a_strangers_backend_works_as_a_built_in_one(install: Install) -> None:
    install("good", "stranger_good:Good")
    assert "good" in registry.names()
    classifier = smolcls.load("good", colour="blue")
    assert classifier.classify("x").label == "command"
    assert classifier.classify("x").backend == "good"
    assert dict(registry.availability())["good"] is None


def test_a_backend_may_read_its_specification_itself(install: Install) -> None:
    install("own", "stranger_own:OwnSpec")
    assert smolcls.load("own:x", size=3).colour == "3"  # type: ignore[attr-defined]
    assert dict(registry.availability())["own"] == "it is only a test"
    with pytest.raises(
        ConfigError, match=r"'own' cannot be made from 'own:x' with these options \(.*'colour'.*takes: size\."
    ):
        smolcls.load("own:x", colour="red")


@pytest.mark.parametrize(("name", "close"), [("lamacpp", "llamacpp"), ("Rules", "rules"), ("transformer", "transform")])
def test_an_unknown_name_gets_a_suggestion(name: str, close: str) -> None:
    with pytest.raises(ConfigError, match=rf"No backend '{name}'; installed are: .*fake, .*Did you mean '{close}"):
        registry.find(name)


def test_an_unknown_name_that_is_like_none_gets_the_list() -> None:
    with pytest.raises(ConfigError, match=r"No backend 'zzz'; installed are: .*fake, .*transformers\.$"):
        smolcls.load("zzz:model")
    with pytest.raises(ConfigError, match="No backend ''"):
        smolcls.load("")


@pytest.mark.parametrize("spec", [None, 5, b"rules", Path("rules"), ["rules"]])
def test_what_is_no_name(spec: Any) -> None:
    with pytest.raises(ConfigError, match="A backend is named by a text such as 'llamacpp'"):
        smolcls.load(spec)


def test_an_option_that_the_backend_does_not_have() -> None:
    with pytest.raises(ConfigError) as caught:
        smolcls.load("fake", colour="red")
    assert "The backend 'fake' cannot be made from 'fake' with these options" in str(caught.value)
    assert "unexpected keyword argument 'colour'" in str(caught.value)
    assert "It takes: answers, task, min_confidence, " in str(caught.value)


def test_an_option_that_is_given_twice() -> None:
    with pytest.raises(ConfigError, match="multiple values for argument 'answers'"):
        smolcls.load("fake:workflow", answers="prompt")


def test_a_bug_inside_a_constructor_stays_a_bug(install: Install) -> None:
    install("buggy", "stranger_buggy:Buggy")
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        smolcls.load("buggy")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = 1", "AttributeError: .*Good"),
        ("def", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_an_entry_point_that_does_not_load(install: Install, source: str, reason: str) -> None:
    install("broken", "stranger_broken:Good", source)
    with pytest.raises(
        ConfigError, match=rf"The backend 'broken' \(stranger_broken:Good\) does not load: {reason}"
    ) as e:
        smolcls.load("broken")
    assert "Update or uninstall the package that brought it" in str(e.value)
    assert "does not load" in str(dict(registry.availability())["broken"])
    assert smolcls.load("fake").classify("x").label == "command"


def test_an_entry_point_whose_extra_is_missing_says_so(install: Install) -> None:
    source = "from smolcls.errors import require\nrequire('no_such_module', extra='ollama', purpose='It')"
    install("bare", "stranger_bare:Good", source)
    with pytest.raises(MissingExtraError, match=r'Install it with: pip install "smolcls\[ollama\]"'):
        registry.find("bare")
    assert "smolcls[ollama]" in str(dict(registry.availability())["bare"])


@pytest.mark.parametrize("what", ["function", "helper"])
def test_an_entry_point_that_is_no_classifier(install: Install, what: str) -> None:
    install("odd", f"stranger_odd:{what}")
    with pytest.raises(ConfigError, match=f"'odd' must be a subclass of smolcls.Classifier; found <function {what}"):
        registry.find("odd")


def test_a_class_that_is_not_finished(install: Install) -> None:
    install("abstract", "stranger_abstract:Abstract")
    with pytest.raises(ConfigError, match=r"'abstract' \(stranger_abstract:Abstract\) must implement score_batch"):
        registry.find("abstract")


def test_two_packages_with_one_name_are_told_apart_by_no_one(install: Install) -> None:
    install("rules", "stranger_rules:Good")
    with pytest.raises(ConfigError, match=r"Several installed packages call their backend 'rules' \(smolcls.*stranger"):
        registry.find("rules")


def test_one_package_found_twice_is_one(install: Install) -> None:
    install("good", "stranger_twice:Good")
    install("good", "stranger_twice:Good")
    assert smolcls.load("good").classify("x").label == "command"


def test_a_backend_of_two_methods_is_a_backend() -> None:
    class Shortest(Classifier):
        def score_batch(self, texts: Sequence[str]) -> list[Scores]:
            return [Scores((0.0, -5.0, -5.0)) for _ in texts]

    assert Shortest().classify("x").label == "command"
    assert Shortest.why_unavailable() is None
