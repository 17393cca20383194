"""The report's page: one HTML file without scripts, that needs nothing else, and reads in print and dark mode."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from smolcls.evaluation.run import Answer, Evaluation
from smolcls.evaluation.slices import Slice, slices
from smolcls.files import write_text
from smolcls.report import plots
from smolcls.report.content import HTML, JSON, MAJORITY, Report

_SHOWN = 25  # errors, disagreements and flips that the page lists; the JSON file has more
_LABELS = 30  # labels up to which each has a line of its own

_STYLE = """
:root { --ink: #1b1b1b; --soft: #666; --line: #d8d8d8; --shade: #f5f5f3; --paper: #fff; --bad: #b03a00; }
:root { color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e6e3; --soft: #a3a09b; --line: #3a3a3a; --shade: #232323; --paper: #191919; --bad: #ff9a62; }
  img { filter: invert(0.9) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .4rem 0; max-width: 48rem; }
.soft, figcaption { color: var(--soft); font-size: .87rem; }
.bad { color: var(--bad); font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { background: var(--shade); font-weight: 600; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 16rem; max-width: 34rem; }
tr.baseline td { color: var(--soft); }
figure { margin: 0; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.figures figure { flex: 1 1 18rem; max-width: 22rem; }
img { max-width: 100%; height: auto; display: block; }
@media print {
  :root { --ink: #000; --soft: #444; --line: #bbb; --shade: #f3f3f3; --paper: #fff; --bad: #a00; }
  body { padding: 0; max-width: none; font-size: 10pt; }
  img { filter: none; }
  .wide { overflow: visible; }
  figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""


def write(report: Report, folder: str | Path) -> Path:
    """Write `report.json` and `report.html` into a folder, each whole or not at all; the page's path.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    page, content = render(report), json.dumps(report.to_dict(), ensure_ascii=False, indent=1)
    for name, text in ((JSON, content + "\n"), (HTML, page)):
        # Half a surrogate pair, which JSON texts may hold, has no UTF-8 form.
        write_text(Path(folder) / name, text.encode("utf-8", "backslashreplace").decode("utf-8"))
    return Path(folder) / HTML


def render(report: Report) -> str:
    """The page's HTML."""
    title = f"{report.task}: {len(report.rows)} rows"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="soft">{_text(report.data)}</p>',
        *(f"<p>{_text(remark)}</p>" for remark in report.remarks),
        _gates(report),
        _overview(report),
        _changes(report),
        *(_backend(report, evaluation) for evaluation in report.drawn),
        _disagreements(report),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_text(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(filter(None, parts)) + "\n</body>\n</html>\n"
    )


def _gates(report: Report) -> str:
    if not report.gates:
        return ""
    if not report.failures:
        return f"<p>Required, and met by every named backend: {_text(', '.join(report.gates))}.</p>"
    return "".join(f'<p class="bad">{_text(failure)}</p>' for failure in report.failures)


def _overview(report: Report) -> str:
    head = ["backend", "accuracy", "95 %", "macro-F1", "ECE", "Brier", "NLL", "sure errors", "mean ms", "p95 ms"]
    lines = []
    for item in report.everyone:
        found, before, latency = item.metrics, item.metrics_before, item.latency
        timed = item.name != MAJORITY
        lines.append(
            [
                item.name,
                f"{found.accuracy:.1%}",
                f"{found.accuracy_interval.low:.1%} – {found.accuracy_interval.high:.1%}",
                f"{found.macro_f1:.3f}",
                f"{found.ece:.3f}" + ("" if before is None else f" (was {before.ece:.3f})"),
                f"{found.brier:.3f}",
                f"{found.nll:.3f}",
                f"{found.sure_errors} ({found.sure_error_share:.0%})",
                f"{latency.mean_ms:.1f}" if timed else "–",
                f"{latency.p95_ms:.1f}" if timed else "–",
            ]
        )
    baselines = {item.name for item in report.baselines}
    return (
        "<h2>Side by side</h2>"
        + _table(head, lines, classes=["baseline" if line[0] in baselines else "" for line in lines])
        + '<p class="soft">Baselines are grey. ECE: 15 bins of equal mass, of the predicted label; “was” is before '
        "calibration. Sure errors: wrong answers above 0.99 confidence, and their share of the wrong ones. Latency: "
        "one text at a time, on this machine.</p>"
        + _figure(plots.coverage(report.drawn), "Accuracy of the answers when only the surest rows are answered")
    )


def _backend(report: Report, evaluation: Evaluation) -> str:
    name = _text(evaluation.name)
    figures = (
        (plots.confusion(evaluation), "Confusion matrix: counts, shaded by the share of the true label"),
        (plots.calibration(evaluation), "Reliability in bins of equal mass"),
        (plots.histogram(evaluation), "Confidences of right and wrong answers"),
    )
    return "\n".join(
        [
            f"<h2>{name}</h2>",
            '<div class="figures">' + "".join(_figure(png, f"{evaluation.name}. {text}") for png, text in figures),
            "</div>",
            "<h3>By label</h3>",
            _labels(evaluation),
            "<h3>Slices</h3>",
            _slices(slices(evaluation, report.columns)),
            "<h3>Most confident errors</h3>",
            _errors(report.errors(evaluation)),
        ]
    )


def _labels(evaluation: Evaluation) -> str:
    found = sorted(evaluation.metrics.by_label.items(), key=lambda item: item[1].f1)
    few = found[:_LABELS] if len(found) > _LABELS else list(evaluation.metrics.by_label.items())
    note = (
        f'<p class="soft">The {_LABELS} labels with the lowest F1 of {len(found)}.</p>' if len(found) > _LABELS else ""
    )
    lines = [
        [label, str(item.rows), f"{item.precision:.1%}", f"{item.recall:.1%}", f"{item.f1:.3f}"] for label, item in few
    ]
    return note + _table(["label", "rows", "precision", "recall", "F1"], lines)


def _slices(found: Iterable[Slice]) -> str:
    lines = [
        [
            f"{item.column}: {item.value}",
            str(item.rows),
            f"{item.accuracy:.1%}",
            f"{item.interval.low:.1%} – {item.interval.high:.1%}",
            f"{item.confidence:.1%}",
            f"{item.macro_f1:.3f}",
        ]
        for item in found
    ]
    return _table(["slice", "rows", "accuracy", "95 %", "mean confidence", "macro-F1"], lines)


def _errors(found: Sequence[Answer]) -> str:
    if not found:
        return "<p>No answer is wrong.</p>"
    lines = [[item.row.text, item.row.label, item.label, f"{item.confidence:.1%}"] for item in found[:_SHOWN]]
    return _table(["text", "true label", "answer", "confidence"], lines, texts=True)


def _disagreements(report: Report) -> str:
    if not report.pairs:
        return ""
    lines = [
        [f"{item.first} / {item.second}", f"{item.agreement:.1%}", str(item.only_first), str(item.only_second),
         _p_value(item.p_value)]
        for item in report.pairs
    ]  # fmt: skip
    head = ["backends", "agree", "only the first is right", "only the second is right", "McNemar’s p"]
    parts = ["<h2>Disagreements</h2>", _table(head, lines)]
    if report.disagreements:
        names = [item.name for item in report.drawn]
        rows = [
            [item.row.text, item.row.label]
            + [f"{item.answers[name].label} {item.answers[name].confidence:.0%}" for name in names]
            for item in report.disagreements[:_SHOWN]
        ]
        parts += ["<h3>Where both sides are surest</h3>", _table(["text", "true label", *names], rows, texts=True)]
    return "\n".join(parts)


def _changes(report: Report) -> str:
    parts = []
    for item in report.changes:
        left_out = f" {item.left_out} rows are new or have another label, and are left out." if item.left_out else ""
        parts.append(
            f"<h3>{_text(item.name)}</h3><p>On {item.rows} rows the accuracy was {item.accuracy_before:.1%} and is "
            f"{item.accuracy_after:.1%}: {item.gained} rows became right, {item.lost} wrong (McNemar’s exact test, p "
            f"{_p_value(item.p_value)}).{left_out}</p>"
        )
        if item.flips:
            lines = [[flip.text, flip.label, flip.before, flip.after] for flip in item.flips[:_SHOWN]]
            parts.append(_table(["text", "true label", "before", "now"], lines, texts=True))
    return "<h2>Since the older report</h2>" + "\n".join(parts) if parts else ""


def _table(
    head: Sequence[str], lines: Sequence[Sequence[str]], *, texts: bool = False, classes: Sequence[str] = ()
) -> str:
    """A table; with `texts` the first column holds texts that wrap."""
    first = ' class="text"' if texts else ""
    rows = []
    for place, line in enumerate(lines):
        cells = f"<td{first}>{_text(line[0])}</td>" + "".join(f"<td>{_text(cell)}</td>" for cell in line[1:])
        kind = f' class="{classes[place]}"' if classes and classes[place] else ""
        rows.append(f"<tr{kind}>{cells}</tr>")
    titles = "".join(f"<th>{_text(name)}</th>" for name in head)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    shown = _text(caption)
    return f'<figure><img alt="{shown}" src="data:image/png;base64,{data}"><figcaption>{shown}</figcaption></figure>'


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _text(text: str) -> str:
    return html.escape(text)
