"""The report of an evaluation: `report.json` for programs, `report.html` for people, one file each.

from smolcls.evaluation import evaluate
from smolcls.report import Report, write

write(Report("rows.jsonl", "three-type", (evaluate(classifier, rows),)), "report")
"""

from smolcls.report.content import HTML, JSON, Report
from smolcls.report.page import write
from smolcls.report.plots import check_installed

__all__ = ["HTML", "JSON", "Report", "check_installed", "write"]
