"""The report's files: complete, self-contained, and safe from the texts in them."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from smolcls import Task
from smolcls.backends.fake import FakeClassifier
from smolcls.data.tables import LabelledText
from smolcls.evaluation import changes, evaluate, majority
from smolcls.report import Report, plots, write
from smolcls.report.content import curve
from smolcls.report.page import render

EVIL = '<script>alert("1")</script> & $x$ \ud83d'
LABELS = ["<b>bold</b>", "$10 & more $", "_plain"]
TASK = Task(LABELS, name="evil")
ROWS = [
    LabelledText(EVIL, LABELS[0], {"source": "<i>a</i>"}),
    LabelledText("second\nline", LABELS[1], {"source": "b"}),
    LabelledText("third", LABELS[2], {"source": "b"}),
]


def report(**others: object) -> Report:
    one = evaluate(FakeClassifier(lambda text: (LABELS[1], 0.995), task=TASK), ROWS, name="<u>one</u>")
    other = evaluate(FakeClassifier(lambda text: (LABELS[2], 0.6), task=TASK), ROWS, name="_$other$")
    return Report("rows.jsonl", "evil", (one, other), (majority(LABELS, ROWS),), ("length", "source"), **others)  # type: ignore[arg-type]


class Page(HTMLParser):
    """Counts a page's tags, and keeps its attributes and texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.values: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_needs_nothing_else_and_runs_nothing() -> None:
    page = render(report())
    found = Page(page)
    assert {"script", "link", "iframe", "b", "i", "u"}.isdisjoint(found.tags)
    assert not [name for name, _ in found.values if name == "href" or name.startswith("on")]
    assert all((value or "").startswith("data:image/png;base64,") for name, value in found.values if name == "src")
    assert "http" not in page
    assert EVIL in found.texts
    assert all(label in found.texts for label in LABELS)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_every_picture_is_a_png_with_a_description() -> None:
    image = pytest.importorskip("PIL.Image")
    page = render(report())
    pictures = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)">', page)
    assert len(pictures) == 1 + 2 * 3  # coverage; of each classifier confusion, reliability and confidences
    for alt, data in pictures:
        with image.open(io.BytesIO(base64.b64decode(data))) as opened:
            assert opened.format == "PNG"
            assert opened.width > 500
        assert len(alt) > 10


def test_the_files_say_the_same(tmp_path: Path) -> None:
    path = write(report(gates=("accuracy>=0.9",), failures=("one: required accuracy>=0.9; found 0.3",)), tmp_path / "x")
    assert sorted(item.name for item in path.parent.iterdir()) == ["report.html", "report.json"]
    content = json.loads((path.parent / "report.json").read_text(encoding="utf-8"))
    assert content["format"] == "smolcls-report-1"
    assert content["labels"] == LABELS
    assert content["failures"] == ["one: required accuracy>=0.9; found 0.3"]
    assert list(content["backends"]) == ["<u>one</u>", "_$other$", "majority"]
    one = content["backends"]["<u>one</u>"]
    assert one["metrics"]["confusion"] == [[0, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert (one["metrics"]["sure_errors"], len(one["errors"])) == (2, 2)
    assert one["coverage"] == [{"confidence": 0.995, "coverage": 1.0, "accuracy": pytest.approx(1 / 3)}]
    assert content["rows"][1]["answers"]["_$other$"] == [LABELS[2], 0.6]
    assert [len(row["answers"]) for row in content["disagreements"]] == [2, 2, 2]
    page = path.read_text(encoding="utf-8")
    assert '<p class="bad">one: required accuracy&gt;=0.9; found 0.3</p>' in page
    assert "2 (100%)" in page


def test_what_changed_stands_on_the_page() -> None:
    fresh = report()
    older = {"_$other$": {(row.text, row.label): LABELS[0] for row in ROWS[:2]}}
    page = render(report(changes=tuple(changes(fresh.evaluations, older))))
    assert "On 2 rows the accuracy was 50.0% and is 0.0%: 0 rows became right, 1 wrong" in page
    assert "1 rows are new or have another label, and are left out" in page


def test_a_single_right_answer_makes_a_report(tmp_path: Path) -> None:
    found = evaluate(FakeClassifier("a", task=Task(["a", "b"])), [("text", "a")])
    page = write(Report("rows", "task", (found,)), tmp_path).read_text(encoding="utf-8")
    assert "No answer is wrong." in page
    assert "Disagreements" not in page


def test_many_labels_and_rows_stay_legible() -> None:
    labels = [f"label number {n}" for n in range(60)]
    task = Task(labels, name="many")
    rows = [LabelledText(f"text {n}", labels[n % 60], {}) for n in range(600)]
    spread = {row.text: (labels[(n * 7) % 60], 0.1 + n / 700) for n, row in enumerate(rows)}
    found = evaluate(FakeClassifier(spread, task=task), rows)
    points = curve(found)
    assert len(points) == 200
    assert points[-1].coverage == 1.0
    page = render(Report("rows", "many", (found,)))
    assert "The 30 labels with the lowest F1 of 60." in page
    assert page.count("<td>label number") < 60 * 2


def test_drawing_leaves_matplotlibs_settings_alone() -> None:
    import matplotlib

    (found, _) = report().evaluations
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 40, "axes.facecolor": "red"}):
        one = plots.histogram(found)
    assert plots.histogram(found) == one  # a user's own settings do not show
    assert dict(matplotlib.rcParams) == before
