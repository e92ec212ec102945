"""The findings as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections import Counter
from html import escape

from nnunet_ext import __version__
from nnunet_ext.data.check import Report
from nnunet_ext.data.findings import SEVERITIES
from nnunet_ext.data.forecast import forecast_lines

# More pictures make a page that browsers scroll badly; cases with findings come first.
_MOST_PICTURES = 400

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3em .6em; vertical-align: top; }
td { border-top: 1px solid #ddd; overflow-wrap: anywhere; } .error { color: #b00020; } .warning { color: #8a5a00; }
.note { color: #555; } figure { display: inline-block; margin: .4em; width: 104px; vertical-align: top; }
figure img { max-width: 96px; display: block; background: #000; } figcaption { font-size: 11px;
  overflow-wrap: anywhere; }
figure.error img { outline: 3px solid #b00020; } figure.warning img { outline: 3px solid #d99a00; }
"""


def render_page(report: Report) -> str:
    """HTML text with the findings, the forecast and a picture of every case, flagged ones first."""
    counts = Counter(finding.severity for finding in report.findings)
    title = f"{report.layout.folder.name}: " + ", ".join(f"{counts[s]} {s}s" for s in SEVERITIES)
    rows = "".join(
        f'<tr><td class="{f.severity}">{f.severity}</td><td>{escape(f.check)}</td><td>{escape(f.file)}</td>'
        f"<td>{escape(f.value)}</td><td>{escape(f.remedy)}</td></tr>"
        for f in report.findings
    )
    table = (
        "<table><thead><tr><th>severity</th><th>check</th><th>file</th><th>value</th><th>remedy</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
        if rows
        else "<p>Nothing found.</p>"
    )
    lines = "".join(f"<li>{escape(line)}</li>" for line in forecast_lines(report.forecast))
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f"<p>{len(report.cases)} cases read by nnunet_ext {__version__}.</p>{table}"
        f"<h2>Forecast</h2><ul>{lines}</ul><h2>Cases</h2>{_pictures(report)}</body></html>\n"
    )


def _pictures(report: Report) -> str:
    worst: dict[tuple[str, str], str] = {}
    for case in report.cases:
        files = {image.file for image in case.images} | ({case.label.file} if case.label else set())
        relative = {file.removeprefix(f"{report.layout.folder}/") for file in files}
        own = [finding.severity for finding in report.findings if finding.file in relative]
        if own:
            worst[case.split, case.name] = min(own, key=SEVERITIES.index)
    order = sorted(
        (case for case in report.cases if case.thumbnail),
        key=lambda case: SEVERITIES.index(worst.get((case.split, case.name), "note")),
    )
    shown = "".join(
        f'<figure class="{worst.get((case.split, case.name), "")}"><img alt="{escape(case.name)}" '
        f'src="data:image/png;base64,{base64.b64encode(case.thumbnail or b"").decode()}">'
        f"<figcaption>{escape(case.name)}</figcaption></figure>"
        for case in order[:_MOST_PICTURES]
    )
    left = len(order) - _MOST_PICTURES
    return shown + (f"<p>{left} further cases without a picture here.</p>" if left > 0 else "")
