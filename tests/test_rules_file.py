"""The rules file: its format, its errors, its measured confidences, and writing them back."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

import smolcls
from smolcls import Calibration, ConfigError, InputError, Task
from smolcls.backends.rules import HEAD_CHARACTERS, TAIL_CHARACTERS, RulesClassifier, read_rules, with_counts

DESK = Task(["billing", "sales", "spare parts"], name="desk")
DESK_RULES = r"""
# Mail of a shop.
[words]
bill = 'invoice s? | bill s?'
money = '{bill} | refund'   # a fragment may use those above it

[[rule]]
name = "asks-for-money"
label = "billing"
pattern = '\b {money} \b'
unless = '\b paid \b'
why = "A bill is the business of the billing desk."
counts = { billing = 8, sales = 1 }

# Parts have numbers.
[[rule]]
name = "part-number"
label = "spare parts"
at = "start"
case = true
needs = "0123456789"
pattern = '[A-Z]{2} \d{3} \b'
why = "A mail that starts with a part's number orders it."

[[rule]]
name = "otherwise"
label = "sales"
why = "Most mail is for sales."
counts = { sales = 4 }
"""


def desk(folder: Path, text: str = DESK_RULES) -> RulesClassifier:
    path = folder / "desk.rules.toml"
    path.write_text(text, encoding="utf-8")
    return RulesClassifier(path, task=DESK)


# Confidence.


def test_the_confidence_is_the_smoothed_frequency(tmp_path: Path) -> None:
    prediction = desk(tmp_path).classify("My invoices are wrong")
    assert (prediction.label, prediction.rule, prediction.calibrated) == ("billing", "asks-for-money", True)
    third = 1 / 3
    assert prediction.probabilities == pytest.approx(
        {"billing": (8 + third) / 10, "sales": (1 + third) / 10, "spare parts": third / 10}
    )


def test_a_rule_without_counts_stands_as_right_on_one_row(tmp_path: Path) -> None:
    prediction = desk(tmp_path).classify("AB 123? No: AB123")
    assert prediction.rule == "otherwise"
    prediction = desk(tmp_path).classify("AB123 please")
    assert (prediction.label, prediction.rule) == ("spare parts", "part-number")
    assert prediction.confidence == pytest.approx((1 + 1 / 3) / 2)


def calibration(backend: str, task: Task) -> Calibration:
    return Calibration(2.0, task.fingerprint, "", backend, rows=100, nll_before=0.5, nll_after=0.4)


def test_only_a_temperature_fitted_on_rules_is_taken(tmp_path: Path) -> None:
    plain = desk(tmp_path).classify("refund")
    softened = RulesClassifier(tmp_path / "desk.rules.toml", task=DESK, calibration=calibration("rules", DESK))
    assert softened.classify("refund").confidence < plain.confidence
    with pytest.raises(ConfigError, match=r"fitted for another backend \(ollama; this one is rules\)"):
        RulesClassifier(tmp_path / "desk.rules.toml", task=DESK, calibration=calibration("ollama", DESK))
    of_other_rules = dataclasses.replace(calibration("rules", DESK), model="0" * 16)
    with pytest.raises(ConfigError, match=r"fitted for another model \(fingerprint 0{16}; this model's is "):
        RulesClassifier(tmp_path / "desk.rules.toml", task=DESK, calibration=of_other_rules)


# The file.


def test_rules_of_another_task(tmp_path: Path) -> None:
    rules = desk(tmp_path)
    mails = ["A REFUND, please", "I paid the bill", "AB123", "ab123", "hello", "refunded"]
    assert rules.predict(mails) == ["billing", "sales", "spare parts", "sales", "sales", "sales"]
    task = Task(DESK.labels, name="desk", rules=tmp_path / "desk.rules.toml")
    assert smolcls.load("rules", task=task).classify("bill").label == "billing"
    assert smolcls.load(f"rules:{tmp_path / 'desk.rules.toml'}", task=DESK).classify("bill").label == "billing"


def test_capitals_in_a_pattern_match_any_case_unless_told(tmp_path: Path) -> None:
    rules = desk(tmp_path, DESK_RULES.replace("'invoice s? | bill s?'", "'Invoice | BILL'"))
    assert rules.predict(["invoice", "INVOICE", "bill"]) == ["billing"] * 3


def test_whole_and_dot(tmp_path: Path) -> None:
    text = DESK_RULES.replace("pattern = '\\b {money} \\b'", "at = 'whole'\npattern = '{bill} .* now'")
    assert desk(tmp_path, text).predict(["bill\nit now", "my bill now", "bill now!"]) == ["billing", "sales", "sales"]


def test_a_task_without_rules_says_how_to_write_some() -> None:
    with pytest.raises(
        ConfigError, match=r"The task 'desk' has no rules file\. Write one, a TOML file of \[\[rule\]\]"
    ):
        RulesClassifier(task=DESK)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The rules file .*none\.toml cannot be read as UTF-8 text"):
        RulesClassifier(tmp_path / "none.toml", task=DESK)
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"The rules file .*b\.toml cannot be read as UTF-8 text"):
        RulesClassifier(tmp_path / "b.toml", task=DESK)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[words]", "[words", r"desk is not TOML: "),
        ("[words]", "[word]", r"desk has an unknown key 'word'; known are rule, words"),
        ("bill = 'inv", "Bill = 'inv", r"\[words\] must hold lower-case names .* found Bill = 'invoice"),
        ("'{bill} | refund'", "'{bills} | refund'", r"desk, words, money uses \{bills\}, .* there are: bill\."),
        ("{money}", "{cash}", r"rule 'asks-for-money', pattern uses \{cash\}, .* there are: bill, money\."),
        ("'{bill} | refund'", "'{bill} | (refund'", r"desk, words, money is not a regular expression: missing \)"),
        ("'\\b paid \\b'", "'paid)'", r"rule 'asks-for-money', unless is not a regular expression: unbalanced"),
        ("d{3} \\b'", "d{3} [z-a]'", r"rule 'part-number', pattern is not a regular expression: bad character range"),
        ('case = true', 'case = 1', r"rule 'part-number': case must be a bool; found 1"),
        ('case = true', 'flags = "i"', r"rule 'part-number' has an unknown key 'flags'; known are at, case, counts"),
        ('at = "start"', 'at = "end"', r"rule 'part-number': at must be one of anywhere, start, whole; found 'end'"),
        ('label = "billing"', 'label = "bills"', r"one of the labels billing, sales, spare parts; found 'bills'"),
        ('label = "billing"', "", r"rule 'asks-for-money' has no label; each rule needs name, label, pattern and why"),
        ('why = "Most mail is for sales."', "", r"rule 'otherwise' has no why"),
        ('name = "part-number"', "", r"desk, rule 2 has no name"),
        ('name = "part-number"', 'name = "otherwise"', r"desk has two rules named 'otherwise'"),
        ('counts = { sales = 4 }', "pattern = 'x'", r"has no condition; 'otherwise' has `pattern`\. Add a last rule"),
        ('counts = { sales = 4 }', "unless = 'x'", r"has no condition; 'otherwise' has `unless`\. Add a last rule"),
        ("pattern = '[A-Z]", "unless = '[A-Z]", r"rule 'part-number' has no pattern, so the rules below it can never"),
        ("sales = 1 }", "bills = 1 }", r"rule 'asks-for-money': counts has the unknown label 'bills'"),
        ("sales = 1 }", "sales = -1 }", r"counts must be whole numbers from 0 on; found sales = -1"),
        ("sales = 1 }", "sales = true }", r"counts must be whole numbers from 0 on; found sales = True"),
        ("sales = 1 }", "sales = 8 }", r"says 'billing', but of the rows it decided 8 were 'sales' and 8 'billing'"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_the_place(old: str, new: str, message: str) -> None:
    assert DESK_RULES.count(old) == 1
    with pytest.raises(ConfigError, match=message):
        read_rules(DESK_RULES.replace(old, new), DESK, where="desk")


@pytest.mark.parametrize("text", ["", "rule = []", "rule = [1]", "[words]\na = 'b'"])
def test_a_file_without_rules_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"desk must hold rules, each as a table \[\[rule\]\]; found"):
        read_rules(text, DESK, where="desk")


# Measuring.

ROWS = [("bill", "billing"), ("bills!", "billing"), ("refund", "sales"), ("ZZ999", "spare parts"), ("hi", "sales")]


def test_measuring_and_writing_back(tmp_path: Path) -> None:
    counts = desk(tmp_path).measure(iter(ROWS))
    assert counts == {
        "asks-for-money": {"billing": 2, "sales": 1, "spare parts": 0},
        "part-number": {"billing": 0, "sales": 0, "spare parts": 1},
        "otherwise": {"billing": 0, "sales": 1, "spare parts": 0},
    }
    text = with_counts(DESK_RULES, counts)
    written = desk(tmp_path, text)
    assert [rule.counts for rule in written.rules] == [(2, 1, 0), (0, 0, 1), (0, 1, 0)]
    assert with_counts(text, written.measure(ROWS)) == text
    assert '"spare parts" = 1 }\n\n[[rule]]' in text
    assert "# Mail of a shop." in text
    assert "counts = { billing = 2, sales = 1 }\n\n# Parts have numbers.\n[[rule]]" in text


def test_writing_touches_only_what_was_counted() -> None:
    text = with_counts(DESK_RULES, {"asks-for-money": {"billing": 0}})
    before, after = tomllib.loads(DESK_RULES), tomllib.loads(text)
    assert "counts" not in after["rule"][0]
    assert after["rule"][1:] == before["rule"][1:]
    assert with_counts(DESK_RULES, {}) == DESK_RULES


def test_writing_is_refused_where_it_would_spoil_the_file() -> None:
    with pytest.raises(ConfigError, match="desk has no rule 'nobody' to write counts for"):
        with_counts(DESK_RULES, {"nobody": {}}, where="desk")
    with pytest.raises(ConfigError, match="says 'billing', but of the rows it decided 3 were 'sales' and 2 'billing'"):
        with_counts(DESK_RULES, {"asks-for-money": {"billing": 2, "sales": 3}}, where="desk")
    inline = 'rule = [{ name = "otherwise", label = "sales", why = "All." }]\n'
    with pytest.raises(
        ConfigError, match=r"desk cannot be given counts: write each rule below its own \[\[rule\]\] line"
    ):
        with_counts(inline, {"otherwise": {"sales": 3}}, where="desk")


def test_measuring_refuses_a_strange_label_or_a_blank_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Row 2: expected one of the labels billing, sales, spare parts; found 'spam'"):
        desk(tmp_path).measure([("bill", "billing"), ("win!", "spam")])
    with pytest.raises(InputError, match="The text to classify is empty"):
        desk(tmp_path).measure([(" ", "billing")])


def test_head_and_tail_of_a_long_text_are_read(tmp_path: Path) -> None:
    rules = desk(tmp_path)
    room = "x " * 5000
    head, middle, tail = rules.classify_batch(["bill " + room, room + "bill " + room, room + "bill"])
    assert [head.label, middle.label, tail.label] == ["billing", "sales", "billing"]
    assert head.truncated
    whole = "x" * (HEAD_CHARACTERS + TAIL_CHARACTERS)
    assert [item.truncated for item in rules.classify_batch([whole, whole + "x"])] == [False, True]
