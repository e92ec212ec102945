"""The container recipes: what they copy exists, they install by pip only, their shell is sound. They are not built."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from helpers import nnunet_dataset

REPOSITORY = Path(__file__).parent.parent.parent
DOCKERFILE = (REPOSITORY / "containers" / "Dockerfile").read_text()
DEFINITION = (REPOSITORY / "containers" / "nnunet_ext.def").read_text()
SHELL_SECTIONS = ("post", "environment", "runscript", "test")


def sections() -> dict[str, str]:
    parts = re.split(r"^%(\w+)\n", DEFINITION, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_copied_files_exist_and_are_all_the_build_needs():
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()]
    bound = [line.split()[0] for line in sections()["files"].splitlines() if line.strip()]
    kept = re.findall(r"^!(.+)$", (REPOSITORY / ".dockerignore").read_text(), re.MULTILINE)
    assert set(copied) == set(bound) == set(kept)
    for name in copied:
        assert (REPOSITORY / name).exists(), name


@pytest.mark.parametrize("recipe", [DOCKERFILE, DEFINITION], ids=["Dockerfile", "nnunet_ext.def"])
def test_pip_only_and_marked_as_not_built(recipe):
    commands = "\n".join(line for line in recipe.splitlines() if not line.lstrip().startswith("#"))
    assert "pip install --no-cache-dir" in commands
    assert not re.search(r"apt-get|conda|curl|wget|git clone|nvcc", commands)
    assert "Not built by its authors" in recipe


@pytest.mark.parametrize("section", SHELL_SECTIONS)
def test_shell_of_the_definition(section):
    subprocess.run(["sh", "-n"], input=sections()[section], text=True, check=True)
    checked = [nnunet_dataset.COMMANDS / "shellcheck", "-s", "sh", "-"]
    done = subprocess.run(checked, input=sections()[section], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_dockerfile_passes_its_linter():
    done = subprocess.run(
        [nnunet_dataset.COMMANDS / "hadolint", REPOSITORY / "containers" / "Dockerfile"], text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout
