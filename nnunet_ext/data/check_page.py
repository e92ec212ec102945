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
figure .none { width: 96px; height: 96px; background: #ddd; color: #555; font-size: 11px; line-height: 96px;
  text-align: center; }
figure.error > :first-child { outline: 3px solid #b00020; }
figure.warning > :first-child { outline: 3px solid #d99a00; }
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
    """A tile per case, those with errors first; one that cannot be read has a tile that says so."""
    pictures = {(case.split, case.name): case.thumbnail for case in report.cases}
    tiles = []
    for case in report.layout.cases:
        files = {str(path.relative_to(report.layout.folder)) for path in (*case.images, case.label) if path}
        found = [finding.severity for finding in report.findings if finding.file in files]
        worst = min(found, key=SEVERITIES.index, default="")
        png = pictures.get((case.split, case.name))
        shown = (
            f'<img alt="{escape(case.name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
            if png
            else '<div class="none">no picture</div>'
        )
        mark = f" ({worst})" if worst else ""
        tile = f'<figure class="{worst}">{shown}<figcaption>{escape(case.name)}{mark}</figcaption></figure>'
        tiles.append((SEVERITIES.index(worst) if worst else len(SEVERITIES), tile))
    tiles.sort(key=lambda pair: pair[0])
    left = len(tiles) - _MOST_PICTURES
    more = f"<p>{left} further cases without a picture here.</p>" if left > 0 else ""
    return "".join(tile for _, tile in tiles[:_MOST_PICTURES]) + more
