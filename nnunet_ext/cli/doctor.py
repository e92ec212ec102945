"""Check the installation and the machine, and say what to do about each problem.

Reports versions, how nnU-Net finds this project's trainers with a proof (nnU-Net's own look-up in a fresh
interpreter), which selective-scan backends run and why others do not, GPU, nnU-Net's three folders, disk, memory and
cores. Changes nothing. Exit status 1 if something keeps this project's trainers from training; warnings do not count.

example:
  nnunet_ext doctor
  nnunet_ext doctor --json > doctor.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from nnunet_ext import __version__
from nnunet_ext.discovery.table import entries
from nnunet_ext.doctor import machine, probes, software
from nnunet_ext.doctor.finding import Finding

SIGNS = {"ok": ("✓", "32"), "note": ("·", "2"), "warning": ("!", "33"), "broken": ("✗", "31")}
COLUMN = 29  # the longest name of a package
PLAIN_SIGNS = {"ok": "ok", "note": "-", "warning": "!", "broken": "X"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `nnunet_ext doctor`."""
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the report; return 1 if anything is broken."""
    sections: dict[str, list[Finding]] = {}
    printer = None if arguments.json else _Printer()
    for title, findings in examine():
        sections[title] = findings
        if printer:
            printer.section(title, findings)
    broken = any(finding.status == "broken" for findings in sections.values() for finding in findings)
    if printer:
        printer.summary([finding for findings in sections.values() for finding in findings])
    else:
        report = {
            "nnunet_ext": __version__,
            "ok": not broken,
            "sections": {title: [dataclasses.asdict(f) for f in findings] for title, findings in sections.items()},
        }
        print(json.dumps(report, indent=2))
    return int(broken)


def examine() -> Iterator[tuple[str, list[Finding]]]:
    """Yield the sections of the report, each as soon as it is known."""
    environment = dict(os.environ)
    with ThreadPoolExecutor(2) as pool:
        # Both import torch, which takes seconds; the quick sections are printed meanwhile.
        torch_answer, look_up_answer = pool.submit(probes.torch_here), pool.submit(probes.look_up, entries())
        yield "Versions", software.versions()
        yield "nnU-Net's folders", machine.folders(environment)
        yield "Machine", machine.cores(environment) + machine.memory(environment)
        settings = software.variables(environment)
        if settings:
            yield "Environment variables", settings
        found = torch_answer.result()
        imports = software.torchvision(found["imports"], found.get("cuda_build")) if "imports" in found else []
        yield "Torch and GPU", imports + machine.gpu(found)
        yield "Selective scan", software.backends(found)
        yield "Finding trainers", [software.commands(), *software.look_up(look_up_answer.result())]


class _Printer:
    """Writes sections to stdout: colour and signs in a terminal, plain words elsewhere."""

    def __init__(self) -> None:
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.unicode = "utf" in (sys.stdout.encoding or "").lower()
        self.width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))

    def section(self, title: str, findings: list[Finding]) -> None:
        print(self._paint(title, "1"))
        for finding in findings:
            sign, code = SIGNS[finding.status]
            sign = sign if self.unicode else PLAIN_SIGNS[finding.status]
            indent = " " * (COLUMN + 6)
            lines = textwrap.wrap(
                finding.value, self.width - len(indent), break_long_words=False, break_on_hyphens=False
            ) or [""]
            print(f"  {self._paint(f'{sign:2s}', code)} {finding.name:{COLUMN}s} {lines[0]}")
            for line in lines[1:]:
                print(indent + line)
        print(flush=True)

    def summary(self, findings: list[Finding]) -> None:
        problems = [finding for finding in findings if finding.status in ("broken", "warning")]
        problems.sort(key=lambda finding: finding.status != "broken")
        if problems:
            print(self._paint("What to do", "1"))
        for finding in problems:
            label = "BROKEN " if finding.status == "broken" else "warning"
            print(f"  {self._paint(label, SIGNS[finding.status][1])} {finding.name}: {finding.remedy}")
        broken = sum(finding.status == "broken" for finding in problems)
        if broken:
            print(self._paint(f"\n{broken} broken, {len(problems) - broken} warnings.", "31"))
        else:
            text = "Ready to train." if not problems else f"\nReady to train, with {len(problems)} warnings."
            print(self._paint(text, "32"))

    def _paint(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.colour else text
