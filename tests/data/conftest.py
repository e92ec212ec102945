"""The clean data set of `blobs`, anew for each test."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.blobs import make


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return make(tmp_path / "Dataset042_Blobs")
