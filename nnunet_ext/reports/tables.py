"""The main table as CSV, Markdown and LaTeX, the numbers as JSON, and how numbers are written."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nnunet_ext import __version__
from nnunet_ext.errors import one_line
from nnunet_ext.evaluation.compare import LEVEL, RESAMPLES, SEED
from nnunet_ext.reports.comparison import Comparison, Metric, Row
from nnunet_ext.reports.resources import resources_of

HEAD = ("metric", "label", "method", "n", "mean ± SD", "95 % CI", "median [IQR]", "missed", "false alarms")


def number(value: float, metric: Metric, *, signed: bool = False) -> str:
    """A value of a metric with the metric's digits; `–` when it is undefined."""
    if math.isnan(value):
        return "–"
    return f"{value:{'+' if signed else ''}.{metric.digits}f}".replace("-", "−")


def p_value(p: float) -> str:
    """`0.012`, `< 0.001`, or `–` when there was no test."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval(low: float, high: float, metric: Metric, *, signed: bool = False) -> str:
    """`0.81 to 0.84`: a dash between numbers reads as a minus."""
    if math.isnan(low):
        return "–"
    return f"{number(low, metric, signed=signed)} to {number(high, metric, signed=signed)}"


def mean_sd(row: Row) -> str:
    """`0.812 ± 0.034`."""
    own = row.description
    return number(own.mean, row.metric) + ("" if math.isnan(own.sd) else f" ± {number(own.sd, row.metric)}")


def median_iqr(row: Row) -> str:
    """`0.82 [0.79 to 0.84]`."""
    own = row.description
    return f"{number(own.median, row.metric)} [{interval(own.q25, own.q75, row.metric)}]" if own.n else "–"


def as_csv(data: Comparison) -> str:
    """Full precision, one line per metric, label and method."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    statistics = ("n", "mean", "sd", "low", "high", "median", "q25", "q75")
    writer.writerow(["metric", "label", "method", *statistics, "missed", "false_alarms", "absent", "best"])
    for row in data.rows:
        values = [getattr(row.description, name) for name in statistics]
        writer.writerow([row.metric.title, row.label, row.method, *values, row.missed, row.false_alarms, row.absent,
                         int(row.best)])  # fmt: skip
    return text.getvalue()


def as_markdown(data: Comparison) -> str:
    """A pipe table; bold is a method that every pairwise test finds better than all others."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * 3 + "|---:" * (len(HEAD) - 3) + "|"]
    for row in data.rows:
        cells = [_markdown(cell) for cell in _cells(row)]
        if row.best:
            cells[4] = f"**{cells[4]}**"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def as_latex(data: Comparison) -> str:
    """A table for the booktabs package."""
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{tabular}{lllrrrrrr}",
        "\\toprule",
        " & ".join(_latex(cell) for cell in HEAD) + " \\\\",
    ]
    before: Row | None = None
    for row in data.rows:
        if before is None or row.metric != before.metric:
            lines.append("\\midrule")
        elif row.label != before.label:
            lines.append("\\addlinespace")
        cells = [_latex(cell) for cell in _cells(row)]
        if row.best:
            cells[4] = f"\\textbf{{{cells[4]}}}"
        lines.append(" & ".join(cells) + " \\\\")
        before = row
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def as_json(data: Comparison) -> dict[str, Any]:
    """Everything in the report that is a number, for scripts; NaN becomes null when it is written."""
    return {
        "written_by": f"nnunet_ext {__version__}",
        "settings": {
            "resamples": RESAMPLES,
            "seed": SEED,
            "level": LEVEL,
            "unit": "patient" if data.patient_of else "case",
            "evaluation": data.runs[0].settings,
        },
        "warnings": list(data.warnings),
        "methods": [
            {"name": run.name, "folder": run.folder.name, "resources": asdict(resources_of(run))} for run in data.runs
        ],
        "cases": list(data.cases),
        "units": list(data.units),
        "rows": [
            {
                "metric": row.metric.key, "label": row.label, "method": row.method, **asdict(row.description),
                "missed": row.missed, "false_alarms": row.false_alarms, "absent": row.absent, "best": row.best,
            }
            for row in data.rows
        ],
        "pairs": [
            {
                "metric": pair.metric.key, "label": pair.label, "new": pair.new, "old": pair.old,
                **asdict(pair.result), "p_holm": pair.p_holm,
            }
            for pair in data.pairs
        ],
        "ranks": {
            metric: {"methods": list(data.methods), "share": ranks.share, "kendall_tau": ranks.kendall}
            for metric, ranks in data.ranks.items()
        },
        "per_case": [
            {"metric": metric, "label": label, "method": method, "values": values}
            for (method, label, metric), values in data.per_case.items()
        ],
    }  # fmt: skip


def _cells(row: Row) -> Sequence[str]:
    own = row.description
    middle = [mean_sd(row), interval(own.low, own.high, row.metric), median_iqr(row)]
    return [row.metric.title, row.label, row.method, str(own.n), *middle, str(row.missed), str(row.false_alarms)]


def _markdown(text: str) -> str:
    return one_line(text).replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")


def _latex(text: str) -> str:
    text = one_line(text).replace("\\", "\\textbackslash ")
    for mark in "&%$#_{}":
        text = text.replace(mark, "\\" + mark)
    return (
        text.replace("±", "$\\pm$").replace("−", "$-$").replace("~", "\\~{}").replace("^", "\\^{}").replace("–", "--")
    )
