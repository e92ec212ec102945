"""One self-contained HTML file: tables, plots, pictures and text of a comparison. Nothing is loaded from anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from nnunet_ext import __version__
from nnunet_ext.evaluation.compare import RESAMPLES
from nnunet_ext.reports import tables
from nnunet_ext.reports.comparison import ALPHA, FEWEST, MEAN, Comparison, Row
from nnunet_ext.reports.facts import facts_about
from nnunet_ext.reports.figure_set import COLOUR_COUNT, cost_plots, curve_plots, difference_plots, score_plots
from nnunet_ext.reports.folds import folds_in_words, resumes
from nnunet_ext.reports.methods_text import methods_paragraph, references, why_withheld
from nnunet_ext.reports.resources import in_words, resources_of

_ASSETS = Path(__file__).parent / "assets"
# Cells of the case table beyond which only the worst cases are listed: browsers sort more than this slowly.
_MOST_CELLS = 40_000
# The page may not load anything; its own style, script and pictures are inside.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def render(
    data: Comparison,
    pictures: str,
    picture_problem: str | None,
    test_set: Comparison | None = None,
    interactions: str = "",
) -> str:
    """The page.

    Args:
        data: the comparison.
        pictures: HTML of the overlays, may be empty.
        picture_problem: why some pictures are absent.
        test_set: the same methods on cases that none of their folds has seen.
        interactions: HTML of the curves under simulated interactions, may be empty.
    """
    sections = [
        ("results", "Results", _main_table(data, "main")),
        ("test-set", "Test set", _test_set(test_set) if test_set else ""),
        ("differences", "Differences", _pair_table(data, "pairs") if data.pairs else ""),
        ("ranks", "How stable is the order", _rank_tables(data) if data.ranks else ""),
        ("scores", "Distribution of the scores", score_plots(data)),
        ("paired", "Differences case by case", difference_plots(data)),
        ("interactions", "Simulated interactions: the users see the reference", interactions),
        ("training", "Training", curve_plots(data) + _resumes(data)),
        ("cost", "Cost", _cost(data)),
        ("pictures", "Worst, median and best case", _pictures(pictures, picture_problem)),
        ("cases", "All cases", _case_table(data)),
        ("methods", "Text for a methods section", _methods(data)),
        ("definitions", "Definitions", _definitions(data)),
        ("tables", "The main table for papers", _exports(data)),
    ]
    shown = [(key, title, body) for key, title, body in sections if body]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in shown)
    body = "".join(f'<section id="{key}"><h2>{title}</h2>{text}</section>' for key, title, text in shown)
    title = f"{data.runs[0].dataset}: {', '.join(data.methods)}"
    style, script = ((_ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{style}</style></head>'
        f"<body><header><h1>{escape(title)}</h1>{_summary(data)}</header>"
        f"{_warnings(data, test_set)}<nav>{links}</nav>{body}"
        f'<footer class="soft"><p>Made by nnunet_ext {__version__} (nnunet_ext report).</p></footer>'
        f"<script>{script}</script></body></html>\n"
    )


def _summary(data: Comparison) -> str:
    folds = {fold for case in data.cases if (fold := data.runs[0].cases[case].fold) is not None}
    parts = [f"{len(data.cases)} cases"]
    if data.patient_of:
        parts.append(f"{len(data.units)} patients")
    if folds:
        parts.append(folds_in_words(folds, data.runs[0].planned_folds))
    parts.append(f"labels {', '.join(label for label in data.labels if label != MEAN)}")
    if (convention := data.runs[0].settings.get("convention", "default")) != "default":
        parts.append(f"convention {convention}")
    facts = "".join(
        f"<li>{_method(data, run.name)}: {escape(text)}</li>" for run in data.runs if (text := facts_about(run))
    )
    return f'<p class="meta">{escape(" · ".join(parts))}</p>' + (f'<ul class="facts">{facts}</ul>' if facts else "")


def _warnings(data: Comparison, test_set: Comparison | None) -> str:
    texts = [*data.warnings, *(f"Test set: {text}" for text in (test_set.warnings if test_set else ()))]
    if not texts:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<div class="note" role="note"><strong>Read this first</strong><ul>{items}</ul></div>'


def _test_set(data: Comparison) -> str:
    """The main table and the differences once more, of predictions by all folds together."""
    pairs = _pair_table(data, "test-pairs") if data.pairs else ""
    seen = f"<p>{len(data.cases)} cases that no fold has seen, predicted by all folds of a method together.</p>"
    return seen + _main_table(data, "test-main") + pairs


def _main_table(data: Comparison, key: str) -> str:
    head = "".join(f"<th>{escape(metric.heading)}</th>" for metric in data.metrics)
    rows = []
    width = len(data.metrics) + 4
    for label in data.labels:
        rows.append(f'<tr class="group"><th class="text" colspan="{width}" scope="rowgroup">{escape(label)}</th></tr>')
        for method in data.methods:
            own = [row for row in data.rows if (row.label, row.method) == (label, method)]
            rows.append(
                f'<tr><td class="text">{_method(data, method)}</td>{"".join(map(_score, own))}'
                f"<td>{own[0].description.n}</td>{_count(own[0].missed)}{_count(own[0].false_alarms)}</tr>"
            )
    units = "patients (mean over each one's cases)" if data.patient_of else "cases"
    several = (
        f"★ and green: no structure missed, better than every other method in the mean, and by every pairwise test "
        f"(p &lt; {ALPHA:g} after Holm, pointing the same way). ↑ larger is better, ↓ smaller is better. "
        if len(data.runs) > 1
        else ""
    )
    mean = f"“{MEAN}” is the mean over the labels of a case. " if MEAN in data.labels else ""
    return (
        f"<p>Mean ± SD over n {units}; below it the 95 % bootstrap interval of the mean, and the median with its "
        f"quartiles. A structure that was missed, or found where there is none, counts: Dice 0, and as distance what "
        f"the definitions below say. {several}{mean}</p>"
        f'<div class="scroll"><table id="{key}"><thead><tr><th class="text">method</th>'
        f"{head}<th>n</th><th>missed</th><th>false alarms</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _score(row: Row) -> str:
    own = row.description
    spread = "" if math.isnan(own.sd) else f" ± {tables.number(own.sd, row.metric)}"
    style = ' class="best"' if row.best else ""
    return (
        f"<td{style}><b>{tables.number(own.mean, row.metric)}</b>{spread}<small>"
        f"{tables.interval(own.low, own.high, row.metric)}</small><small>median {tables.median_iqr(row)}</small></td>"
    )


def _count(number: int) -> str:
    return f'<td class="bad">{number}</td>' if number else "<td>0</td>"


def _pair_table(data: Comparison, key: str) -> str:
    rows = []
    tested = [pair for pair in data.pairs if not math.isnan(pair.p_holm)]
    for pair in data.pairs:
        own = pair.result
        tests = (
            f'<td data-v="{pair.p_holm}">{tables.p_value(pair.p_holm)}<small>{_effect(own.rank_biserial)}</small></td>'
            f'<td data-v="{own.p_not_better}">{tables.p_value(own.p_not_better)}</td>'
        )
        rows.append(
            f'<tr><td class="text">{escape(pair.metric.title)}</td><td class="text">{escape(pair.label)}</td>'
            f'<td class="text wrap">{_method(data, pair.new)} − {_method(data, pair.old)}</td>'
            f'<td data-v="{own.difference}">{tables.number(own.difference, pair.metric, signed=True)}'
            f"<small>{tables.interval(own.low, own.high, pair.metric, signed=True)}</small></td>"
            f"{tests if tested else ''}"
            f'<td data-v="{own.wins}">{own.wins} / {own.ties} / {own.losses}</td></tr>'
        )
    titles = ["metric", "label", "pair", "difference", "wins / ties / losses"]
    explained = few = ""
    if tested:
        titles[4:4] = ["p (Wilcoxon, Holm)", "P(not better)"]
        explained = (
            "; p: two-sided Wilcoxon signed-rank test, corrected after Holm over all rows of a metric, and below it "
            "the test's effect r, positive where its ranks are for the first method; P(not better): probability that "
            "the first method is in truth not better than the second"
        )
    if len(tested) < len(data.pairs):
        few = f" Below {FEWEST} {data.unit} nothing is tested."
    return (
        f"<p>Paired by case: mean difference with its 95 % bootstrap interval{explained}; how many {data.unit} the "
        "first method wins. Where one method rightly finds nothing and another raises a false alarm, the first has "
        f"the best possible value.{few}</p>"
        f'<div class="scroll tall"><table class="sortable" id="{key}">{_head(titles, text=3)}'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _effect(rank_biserial: float) -> str:
    return "" if math.isnan(rank_biserial) else f"r {rank_biserial:+.2f}".replace("-", "−")


def _rank_tables(data: Comparison) -> str:
    blocks = []
    for metric in data.metrics:
        if metric.key not in data.ranks:
            continue
        ranks = data.ranks[metric.key]
        head = "".join(f"<th>{place + 1}.</th>" for place in range(len(data.methods)))
        rows = "".join(
            f'<tr><td class="text">{_method(data, method)}</td>'
            + "".join(f'<td class="heat" style="--share:{share:.3f}">{100 * share:.0f} %</td>' for share in shares)
            + "</tr>"
            for method, shares in zip(data.methods, ranks.share.tolist(), strict=True)
        )
        blocks.append(
            f"<div><h3>{escape(metric.heading)}, {escape(data.overall)} (τ {ranks.kendall:.2f})</h3>"
            f'<div class="scroll"><table><thead><tr><th class="text">method</th>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div></div>"
        )
    return (
        f"<p>How often each method takes each place by its mean when the {data.unit} are drawn again "
        f"({RESAMPLES} times). Kendall's τ compares these orders with the observed one; 1 means that none differs.</p>"
        f'<div class="ranks">{"".join(blocks)}</div>'
    )


def _resumes(data: Comparison) -> str:
    """Every time a training was continued, and what changed."""
    rows = "".join(
        f'<tr><td class="text">{_method(data, run.name)}</td><td>{fold}</td><td>{epoch}</td>'
        f'<td class="text">{escape(date)}</td><td class="text wrap">{escape(changes)}</td></tr>'
        for run in data.runs
        for fold, date, epoch, changes in resumes(run)
    )
    if not rows:
        return ""
    return (
        "<h3>Resumed trainings</h3>"
        '<div class="scroll"><table id="resumed"><thead><tr><th class="text">method</th><th>fold</th><th>at epoch</th>'
        f'<th class="text">date</th><th class="text">what changed</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _cost(data: Comparison) -> str:
    facts = [in_words(resources_of(run)) for run in data.runs]
    rows = "".join(
        f'<tr><td class="text">{escape(title)}</td>{"".join(f"<td>{escape(own[title])}</td>" for own in facts)}</tr>'
        for title in facts[0]
        if any(own[title] != "–" for own in facts)
    )
    if not rows:
        return ""
    head = "".join(f"<th>{_method(data, method)}</th>" for method in data.methods)
    return (
        "<p>As the runs recorded it (run.json, training logs); – where one did not. GMACs are multiply-adds of "
        "convolutions and matrix products. Peak memory is that of the GPU where one was used, else of the process. "
        "Prediction includes mirroring. Times of runs that shared a machine with other work are upper bounds.</p>"
        f'<div class="scroll"><table id="cost"><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f"</div>{cost_plots(data)}"
    )


def _pictures(pictures: str, problem: str | None) -> str:
    note = f'<div class="note">Pictures are missing: {escape(problem)}</div>' if problem else ""
    if not pictures:
        return note
    return (
        "<p>By mean Dice, for each method. Each plane is the one with the most voxels in error. Broad line: reference; "
        "thin line: prediction. "
        '<label><input type="checkbox" data-hide="no-ref" checked> reference</label> '
        f'<label><input type="checkbox" data-hide="no-pred" checked> prediction</label></p>{note}{pictures}'
    )


def _case_table(data: Comparison) -> str:
    metrics = [metric for metric in data.metrics if metric.key in ("Dice", "HD95")]
    columns = [(method, metric) for method in data.methods for metric in metrics]
    worst_first = sorted(
        data.cases,
        key=lambda case: sum(
            v for m in data.methods if not math.isnan(v := data.per_case[m, data.overall, "Dice"][case])
        ),
    )
    listed = worst_first[: max(_MOST_CELLS // (len(columns) + 2), 1)]
    first = data.runs[0]
    rows = []
    for case in listed:
        cells = [f'<td class="text">{escape(case)}</td>']
        fold = first.cases[case].fold
        cells.append(f"<td>{'' if fold is None else fold}</td>")
        for method, metric in columns:
            value = data.per_case[method, data.overall, metric.key][case]
            run = data.runs[data.methods.index(method)]
            failed = any(state in ("missed", "false_alarm") for state in run.cases[case].status.values())
            style = ' class="bad"' if failed else ""
            cells.append(f'<td{style} data-v="{value:.6g}">{tables.number(value, metric)}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    left = len(data.cases) - len(listed)
    more = f" The {left} best cases are left out here; report.json has all." if left else ""
    titles = ["case", "fold", *(f"{method} {metric.heading}" for method, metric in columns)]
    over = "Means over the labels. " if data.overall == MEAN else ""
    return (
        f"<p>{over}Worst first; a click on a title sorts. Coloured: a structure was missed or falsely found.{more}</p>"
        f'<div class="scroll tall"><table class="sortable" id="case-table">{_head(titles, text=1)}'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _methods(data: Comparison) -> str:
    papers = "".join(f"<li>{escape(text)}</li>" for text in references(data.runs))
    if reasons := why_withheld(data):
        items = "".join(f"<li>{escape(text)}</li>" for text in reasons)
        return (
            '<div class="note">No text: one sentence per method would say what did not happen. Train the folds of a '
            f"method alike, or compare fewer of them.<ul>{items}</ul></div>{f'<ul>{papers}</ul>' if papers else ''}"
        )
    return (
        f'<pre class="prose" id="methods-text">{escape(methods_paragraph(data))}</pre>'
        f'<button class="copy" data-from="methods-text">copy</button>{f"<ul>{papers}</ul>" if papers else ""}'
    )


def _definitions(data: Comparison) -> str:
    rules = data.runs[0].settings.get("conventions", {})
    terms = "".join(
        f"<dt>{escape(str(name).replace('_', ' '))}</dt><dd>{escape(str(text))}</dd>" for name, text in rules.items()
    )
    folders = "".join(f"<dt>{escape(run.name)}</dt><dd>{escape(run.folder.name)}</dd>" for run in data.runs)
    return f"<dl>{terms}</dl><h3>Runs</h3><dl>{folders}</dl>"


def _exports(data: Comparison) -> str:
    forms = (
        ("markdown", "Markdown", tables.as_markdown),
        ("latex", "LaTeX", tables.as_latex),
        ("csv", "CSV", tables.as_csv),
    )
    return "".join(
        f'<details><summary>{title}</summary><button class="copy" data-from="{key}">copy</button>'
        f'<pre id="{key}">{escape(write(data))}</pre></details>'
        for key, title, write in forms
    )


def _head(titles: Sequence[str], *, text: int) -> str:
    """Head of a table that sorts; the first `text` columns hold words."""
    cells = (
        f"<th{' class=text' if i < text else ''}><button type=button>{escape(title)}</button></th>"
        for i, title in enumerate(titles)
    )
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _method(data: Comparison, method: str) -> str:
    """A method's name behind its colour."""
    colour = data.methods.index(method) % COLOUR_COUNT
    return f'<span class="method"><span class="swatch c{colour}"></span>{escape(method)}</span>'
