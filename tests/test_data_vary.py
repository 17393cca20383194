"""Patterns: slots, fillings, families, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from smolcls.data.rows import Row
from smolcls.data.vary import Pattern, read_patterns, vary
from smolcls.errors import ConfigError

GOOD = """
[slots]
language = ["Python", "Rust", "Haskell"]
file = ["src/auth.ts", "main.py"]

[[text]]
text = "write a quicksort in {language} into {file}, only {language}"
label = "workflow"

[[text]]
text = "what does {{x}} mean in {language}?"
label = "prompt"
family = "braces"

[[text]]
text = "thanks"
label = "prompt"
"""


def patterns(tmp_path: Path, text: str = GOOD) -> list[Pattern]:
    path = tmp_path / "patterns.toml"
    path.write_text(text)
    return read_patterns(path)


def test_every_filling_of_a_text_is_drawn_once(tmp_path: Path) -> None:
    rows = vary(patterns(tmp_path))
    first, second, third = rows[:6], rows[6:9], rows[9:]
    assert {row.text for row in first} == {
        f"write a quicksort in {language} into {file}, only {language}"
        for language in ("Python", "Rust", "Haskell")
        for file in ("src/auth.ts", "main.py")
    }
    assert len({row.family for row in first}) == 1
    assert first[0].family.startswith("vary-")
    assert {row.text for row in second} == {f"what does {{x}} mean in {it}?" for it in ("Python", "Rust", "Haskell")}
    assert {row.family for row in second} == {"braces"}
    assert third == [Row("thanks", "prompt", third[0].family, origin="variation")]
    assert {row.origin for row in rows} == {"variation"}


def test_the_number_of_fillings_is_bounded_and_their_draw_seeded(tmp_path: Path) -> None:
    made = patterns(tmp_path)
    few = vary(made, per_text=2, seed=1)
    assert len(few) == 5
    assert vary(made, per_text=2, seed=1) == few
    assert any(vary(made, per_text=2, seed=seed) != few for seed in (2, 3, 4))
    # A pattern's draw is its own: what stands before it changes nothing.
    assert vary(made[1:], per_text=2, seed=1) == few[2:]


def test_slots_of_many_values_are_not_multiplied_out(tmp_path: Path) -> None:
    values = ", ".join(f'"{number}"' for number in range(500))
    slots = "\n".join(f"s{number} = [{values}]" for number in range(10))
    text = " ".join(f"{{s{number}}}" for number in range(10))
    (pattern,) = patterns(tmp_path, f'[slots]\n{slots}\n[[text]]\ntext = "{text}"\nlabel = "a"\n')
    assert pattern.count == 500**10
    assert len({row.text for row in vary([pattern], per_text=50)}) == 50


def test_texts_that_come_out_alike_are_kept_once(tmp_path: Path) -> None:
    text = '[slots]\nend = ["", "!", "."]\n[[text]]\ntext = "hello there{end}"\nlabel = "a"\n'
    assert len(vary(patterns(tmp_path, text))) == 1


@pytest.mark.parametrize("number", [0, -1, True, 1.5])
def test_what_is_no_number_of_fillings_is_refused(number: int) -> None:
    with pytest.raises(ConfigError, match="per_text must be a whole number of at least 1; found"):
        vary([], per_text=number)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not = [toml", r"patterns\.toml cannot be read as TOML: .*Expected \[slots\] and \[\[text\]\] tables"),
        ("[slots]\n", r"must hold \[\[text\]\] tables, each with a text and a label; found \[\]"),
        ("text = [3]", r"must hold \[\[text\]\] tables"),
        ("texts = []", r"unknown key 'texts'; known are slots, text"),
        ('[[text]]\ntext = "{x}"\nlabel = "a"', r"text 1: no slot 'x' in \[slots\]; there are none"),
        ('[slots]\ny = ["1"]\n[[text]]\ntext = "{x}"\nlabel = "a"', r"no slot 'x' in \[slots\]; there are y"),
        ('[[text]]\ntext = "{} {x!r}"\nlabel = "a"', r"expected slots such as \{file\}, a name and nothing else"),
        ('[slots]\nx = ["1"]\n[[text]]\ntext = "{x:>9}"\nlabel = "a"', r"a name and nothing else; found '\{x:>9\}'"),
        (
            '[[text]]\ntext = "if (a) { b"\nlabel = "a"',
            r"text 1: expected slots such as \{file\}; found 'if \(a\) \{ b'",
        ),
        ('[[text]]\ntext = "x"', r"text 1: expected a label that is not blank; found None"),
        ('[[text]]\ntext = " "\nlabel = "a"', r"text 1: expected a text that is not blank; found ' '"),
        ('[[text]]\ntext = "x"\nlabel = "a"\nfamily = 3', r"text 1: family must be a str; found 3"),
        (
            '[slots]\nx = []\n[[text]]\ntext = "x"\nlabel = "a"',
            r"the slot 'x' must be a list of texts that is not empty",
        ),
        ('[slots]\nx = [1]\n[[text]]\ntext = "x"\nlabel = "a"', r"the slot 'x' must be a list of texts"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        patterns(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read as TOML: .*No such file"):
        read_patterns(tmp_path / "nowhere.toml")
