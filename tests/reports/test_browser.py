"""The report in a real browser: nothing on the console, tables sort, pictures and plots are there, a phone fits it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.toy_runs import CASES, DATASET, make_dataset, make_run

from nnunet_ext.cli.main import main

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH (Debian: apt install chromium)")

# Runs first, so that it sees every error of the page's own script.
LISTEN = (
    "<script>window.problems = []; addEventListener('error', e => problems.push(String(e.message)), true);</script>"
)
# Works the page as a reader would, then leaves what it saw in the document.
USE = """<script>
const column = (table, k) => [...document.querySelectorAll(`#${table} tbody tr`)].map(r => r.children[k]);
const seen = {}, press = (table, k) => {
  document.querySelectorAll(`#${table} th button`)[k].click();
  return column(table, k).map(c => c.dataset.v ?? c.textContent);
};
seen.names = [press("case-table", 0), press("case-table", 0)];
seen.dice = [press("case-table", 2), press("case-table", 2)];
seen.arrow = document.querySelectorAll("#case-table th")[2].getAttribute("aria-sort");
seen.pairs = press("pairs", 3);
const line = document.querySelector(".scan .pred"), box = document.querySelector("input[data-hide=no-pred]");
seen.shown = [getComputedStyle(line).display];
box.click();
seen.shown.push(getComputedStyle(line).display);
document.querySelector("button.copy").click();
seen.plots = [...document.querySelectorAll(".plot svg")].map(s => s.getBBox().width > 50 && s.clientHeight > 20);
seen.dark = getComputedStyle(document.body).backgroundColor;
Promise.all([...document.querySelectorAll("image")].map(async picture => {
  const image = new Image();
  image.src = picture.getAttribute("href");
  await image.decode();
  return image.naturalWidth;
})).catch(e => problems.push("picture: " + e)).then(widths => {
  seen.pictures = widths;
  seen.problems = problems;
  const result = document.createElement("script");
  result.type = "application/json";
  result.id = "seen";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
});
</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("report")
    make_dataset(base)
    make_run(base, "nnUNetTrainerExt", 1)
    make_run(base, "nnUNetTrainerSegMamba", 0, plans="nnUNetPlansSegMamba")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed"):
            patch.setenv(f"nnUNet_{name}", str(base / name))
        assert main(["report", str(base / "results" / DATASET / "*"), "-o", str(base / "report.html"), "-q"]) == 0
    return base / "report.html"


def dump(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """The document after its scripts ran, and the console on stderr."""
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
        f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=5000", *flags, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def browse(page: Path, *flags: str) -> tuple[dict, str]:
    """(what the page's visitor saw, console messages) of the page opened from disk."""
    visited = page.with_name("visited.html")
    text = page.read_text(encoding="utf-8")
    visited.write_text(text.replace("<style>", LISTEN + "<style>", 1).replace("</body>", USE + "</body>"), "utf-8")
    done = dump(visited, *flags)
    found = re.search(r'<script type="application/json" id="seen">(.*?)</script>', done.stdout, re.S)
    assert found, f"the page's visitor did not finish: {done.stderr[-800:]}"
    return json.loads(html.unescape(found[1])), "\n".join(re.findall(r".*CONSOLE.*", done.stderr))


def test_page_works_in_a_browser(report):
    seen, console = browse(report, "--window-size=1200,900")
    assert seen["problems"] == [] and console == ""
    assert seen["names"] == [sorted(CASES), sorted(CASES, reverse=True)]
    rising, falling = ([float(v) for v in values] for values in seen["dice"])
    assert rising == sorted(rising) and falling == sorted(rising, reverse=True) and len(set(rising)) > 1
    assert seen["arrow"] == "descending"
    assert [float(v) for v in seen["pairs"]] == sorted(float(v) for v in seen["pairs"])
    assert seen["shown"] == ["inline", "none"]
    assert len(seen["pictures"]) == 18 and min(seen["pictures"]) > 5
    assert len(seen["plots"]) >= 9 + 2 + 3 + 3 and all(seen["plots"])


def test_page_is_dark_in_a_dark_room(report):
    seen, console = browse(report, "--force-dark-mode", "--blink-settings=preferredColorScheme=0")
    assert console == "" and seen["dark"] == "rgb(18, 22, 27)"


def test_page_fits_a_phone(report):
    # Chromium's own windows are never narrower than 500 pixels; a frame is.
    frame = f'<iframe srcdoc="{html.escape(report.read_text("utf-8"))}" style="width: 360px; height: 700px"></iframe>'
    measure = (
        "<script>onload = () => { const page = document.querySelector('iframe').contentDocument.documentElement;"
        "document.body.dataset.widths = `${page.scrollWidth} ${page.clientWidth}`; }</script>"
    )
    page = report.with_name("phone.html")
    page.write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{frame}{measure}", "utf-8")
    widths = re.search(r'data-widths="(\d+) (\d+)"', dump(page).stdout)
    assert widths and 300 < int(widths[1]) <= int(widths[2]) <= 360, "the page scrolls sideways"
