"""What one check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        value: what was found, in one line.
        status: "ok"; "note": no judgement; "warning": works, but may hurt; "broken": training or prediction with this
            project's trainers will not work.
        remedy: what to do about a warning or a breakage, in one line.
    """

    name: str
    value: str
    status: Status = "ok"
    remedy: str = ""
