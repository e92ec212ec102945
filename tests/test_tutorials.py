"""Every command of the tutorials runs as it stands on the page, in order, and makes what the page says it makes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TUTORIALS = Path(__file__).parent.parent / "docs" / "tutorials"
FIRST = TUTORIALS / "first_training.md"
OTHERS = sorted(set(TUTORIALS.glob("*.md")) - {FIRST})
# The only thing that is changed: the length of trainings.
SHORT = {"NNUNET_EXT_EPOCHS": "1", "NNUNET_EXT_ITERATIONS": "1", "NNUNET_EXT_VAL_ITERATIONS": "1"}


def commands(page: Path) -> str:
    """The text of all blocks of shell commands."""
    return "\n".join(re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


def shortened(script: str) -> str:
    return re.sub(r"(NNUNET_EXT_(?:EPOCHS|ITERATIONS|VAL_ITERATIONS))=\d+", lambda m: f"{m[1]}={SHORT[m[1]]}", script)


def run(page: Path, script: str, folder: Path) -> None:
    """Run a page's commands as bash would, ended by the first that fails."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("nnUNet", "NNUNET_EXT"))}
    variables |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "MPLBACKEND": "Agg"}
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script], cwd=folder, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{page.name}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "Traceback" not in done.stderr, done.stderr[-4000:]
    made = re.search(r"<!-- makes: (.*?) -->", page.read_text(encoding="utf-8"), re.DOTALL)
    missing = [name for name in made[1].split() if not (folder / name).is_file() or not (folder / name).stat().st_size]
    assert missing == [], f"{page.name} says that these are made"


@pytest.fixture(scope="module")
def first_training(tmp_path_factory) -> Path:
    """The folder after the first tutorial."""
    base = tmp_path_factory.mktemp("tutorials")
    script = shortened(commands(FIRST))
    assert script.startswith("mkdir first_training && cd first_training\n")
    (base / "first_training").mkdir()
    run(FIRST, script.partition("\n")[2], base / "first_training")
    return base / "first_training"


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.stem)
def test_a_tutorial_runs_as_written(page, first_training, tmp_path):
    here = tmp_path / "first_training"
    shutil.copytree(first_training, here)
    its_variables = [line for line in shortened(commands(FIRST)).splitlines() if line.startswith("export ")]
    # What these pages install is here already.
    script = re.sub(r"^pip install .*\n", "", commands(page), flags=re.MULTILINE)
    run(page, "\n".join([*its_variables, shortened(script)]), here)
