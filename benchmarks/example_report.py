"""The example report in docs and its pictures, from finished runs.

    nnUNet_raw=... nnUNet_preprocessed=... python benchmarks/example_report.py '.../Dataset004_Hippocampus/*'

writes docs/example_report/report.{html,csv,md,tex,json}, docs/images/results.webp (the methods side by side) and, with
chromium on PATH, docs/images/report_*.webp.
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from nnunet_ext.cli.main import main as nnunet_ext

DOCS = Path(__file__).parent.parent / "docs"
REPORT = DOCS / "example_report" / "report.html"
DARK = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")
# Picture -> (sections that stay on the page, width, height, flags of the browser)
PICTURES: dict[str, tuple[tuple[str, ...], int, int, tuple[str, ...]]] = {
    "report_desktop": (("results", "differences"), 1200, 1500, ()),
    "report_dark": (("scores", "paired", "training"), 1200, 1500, DARK),
    "report_phone": (("results", "scores"), 390, 1500, ()),
    "report_pictures": (("pictures",), 1000, 1295, ()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="as for nnunet_ext report")
    write_example(parser.parse_args().runs)


def write_example(runs: list[str], places: Mapping[str, str] | None = None) -> None:
    """The report of these runs, or of words as `nnunet_ext report` takes them, and its pictures.

    `places` are folders of this machine, and what stands for them on the page.
    """
    if nnunet_ext(["report", *runs, "-o", str(REPORT)]) != 0:
        raise SystemExit(1)
    for path in REPORT.parent.glob("report.[!p]*"):
        text = path.read_text(encoding="utf-8")
        for folder, name in (places or {}).items():
            text = text.replace(folder, name)
        path.write_text(text, encoding="utf-8")
    Image.open(REPORT.with_suffix(".png")).convert("RGB").save(DOCS / "images" / "results.webp", "WEBP", quality=84)
    REPORT.with_suffix(".png").unlink()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("no chromium on PATH: the pictures in docs/images are not renewed")
    for name, (sections, width, height, flags) in PICTURES.items():
        photograph(browser, only(sections), DOCS / "images" / f"{name}.webp", width, height, flags)


def only(sections: tuple[str, ...]) -> str:
    """The page without its other sections; with the head of the page for the first ones only."""
    text = REPORT.read_text(encoding="utf-8")
    text = re.sub(
        r'<section id="(\w+)">.*?</section>', lambda found: found[0] if found[1] in sections else "", text, flags=re.S
    )
    return text if "results" in sections else re.sub(r"<header>.*?</nav>", "", text, flags=re.S)


def photograph(browser: str, page: str, picture: Path, width: int, height: int, flags: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file, shot = Path(folder, "page.html"), Path(folder, "shot.png")
        # A frame is as narrow as it is told; chromium's windows are not.
        frame = f'<iframe srcdoc="{html.escape(page)}" style="width:{width}px;height:{height}px;border:0"></iframe>'
        file.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">{frame}', encoding="utf-8")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *flags]
        command += [f"--user-data-dir={folder}/profile", f"--screenshot={shot}", f"--window-size={width},{height}"]
        subprocess.run([*command, file.as_uri()], check=True, capture_output=True, timeout=120)
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.open(shot).convert("RGB").save(picture, "WEBP", quality=84, method=6)
        print(f"{picture}: {picture.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
