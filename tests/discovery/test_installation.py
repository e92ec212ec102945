"""Life of an installation in a real virtual environment: wheel, editable, editable nnU-Net, uninstalled, `--target`.

One environment, changed step by step, because each costs a full set of packages. Needs the package index.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_ext.discovery.table import trainers

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
NNUNET = "nnunetv2==2.8.1"
TRAINERS = [entry.name for entry in trainers()]

# nnU-Net's own look-up of every trainer, in the process itself and in a spawned one, whose answer is pickled.
LOOK_UP = """
import json, multiprocessing, pickle, sys

def look_up(name):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    try:
        return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        return str(error)

if __name__ == "__main__":
    here = {name: look_up(name) for name in sys.argv[1:]}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = dict(zip(sys.argv[1:], pool.map(look_up, sys.argv[1:])))
    print(json.dumps({
        "modules": {name: getattr(found, "__module__", found) for name, found in here.items()},
        "same_in_child": here == there,
    }))
"""


class Environment:
    """A virtual environment, and commands run in it as a user would: no checkout in the current folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.python = folder / "venv" / "bin" / "python"
        self.variables = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("NNUNET_EXT_", "nnUNet_")) and key not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
        }
        (folder / "look_up.py").write_text(LOOK_UP)

    def uv(self, *arguments: str | Path) -> None:
        command = [shutil.which("uv") or [sys.executable, "-m", "uv"], *arguments]
        flat = [str(part) for item in command for part in (item if isinstance(item, list) else [item])]
        done = subprocess.run(flat, cwd=self.folder, env=self.variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def pip(self, command: str, *arguments: str | Path) -> None:
        self.uv("pip", command, "--python", self.python, *arguments)

    def run(self, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in command],
            cwd=self.folder,
            env={**self.variables, **variables},
            capture_output=True,
            text=True,
            timeout=600,
        )

    def assert_found(self, **variables: str) -> None:
        done = self.run(self.python, "look_up.py", *TRAINERS, **variables)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout.splitlines()[-1])
        assert answer["modules"] == {entry.name: entry.module for entry in trainers()}
        assert answer["same_in_child"]

    def assert_not_found(self, **variables: str) -> None:
        done = self.run(self.python, "look_up.py", "nnUNetTrainer", TRAINERS[0], **variables)
        answer = json.loads(done.stdout.splitlines()[-1])["modules"]
        assert answer["nnUNetTrainer"] == "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
        assert answer[TRAINERS[0]].startswith("Could not find requested nnunet trainer")
        assert "nnunet_ext" not in done.stderr

    def traces(self) -> list[str]:
        """Everything in the environment whose name is ours, caches included."""
        found = (self.folder / "venv").rglob("*")
        return sorted(str(path) for path in found if "nnunet_ext" in path.name or "nnunet-ext" in path.name)

    def files_of_nnunet(self) -> set[str]:
        (package,) = (self.folder / "venv" / "lib").glob("*/site-packages/nnunetv2")
        return {str(path) for path in package.rglob("*") if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment with nnU-Net and the wheel, built from the source distribution; and the wheel."""
    environment = Environment(tmp_path_factory.mktemp("installation"))
    environment.uv("venv", "--python", sys.executable, environment.folder / "venv")
    environment.uv("build", "--out-dir", "dist", REPOSITORY)  # the wheel is built from the unpacked sdist
    (wheel,) = (environment.folder / "dist").glob("*.whl")
    environment.pip("install", NNUNET, "pip", "setuptools")
    stock = environment.files_of_nnunet()
    environment.pip("install", wheel)
    assert environment.files_of_nnunet() == stock, "nothing of ours belongs under nnunetv2/"
    yield environment, wheel
    shutil.rmtree(environment.folder / "venv")  # gigabytes, where uv could not link to its cache


def test_life_of_an_installation(installed):
    environment, wheel = installed
    assert environment.traces(), "the search for traces must see an installed package"

    # Wheel, nnU-Net from the index.
    environment.assert_found()
    silent = environment.run(environment.python, "-c", "import sys; print('nnunet_ext' in sys.modules)")
    assert (silent.stdout, silent.stderr) == ("False\n", "")
    environment.assert_not_found(NNUNET_EXT_AUTOLOAD="0")
    (environment.folder / "preprocessed").mkdir()
    folders = {
        name: str(environment.folder / "preprocessed")
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    }
    report = environment.run(environment.python.with_name("nnunet_ext"), "doctor", "--json", **folders)
    findings = {f["name"]: f for section in json.loads(report.stdout)["sections"].values() for f in section}
    assert report.returncode == 0, report.stdout
    assert findings["found through"]["value"].startswith("the start-up hook")
    # nnU-Net's command gets past the trainer, to the data set that is not there.
    train = environment.run(
        environment.python.with_name("nnUNetv2_train"), "999", "3d_fullres", "0", "-tr", TRAINERS[-1], **folders
    )
    assert train.returncode != 0 and "Could not find requested nnunet trainer" not in train.stderr
    assert "999" in train.stderr

    # A trainer that cannot be imported, say for a broken torch: the reason comes before nnU-Net's own message.
    (module,) = (environment.folder / "venv" / "lib").glob("*/site-packages/nnunet_ext/trainers/plain.py")
    intact = module.read_text()
    module.unlink()  # hard-linked to the cache: never write into it
    module.write_text("raise OSError('libcudart.so: cannot open')\n")
    broken = environment.run(environment.python, "look_up.py", "nnUNetTrainerExt")
    assert (
        "nnunet_ext: nnUNetTrainerExt cannot be loaded from nnunet_ext.trainers.plain (OSError: libcudart"
        in broken.stderr
    )
    assert "Could not find requested nnunet trainer" in broken.stdout
    module.write_text(intact)

    # Editable, nnU-Net from the index.
    environment.pip("install", "--no-deps", "--editable", REPOSITORY)
    environment.assert_found()

    # Both editable; then the wheel with an editable nnU-Net.
    source = unpacked_nnunet(environment)
    environment.pip("uninstall", "nnunetv2")
    environment.pip("install", "--no-deps", "--editable", source)
    environment.assert_found()
    environment.pip("install", "--no-deps", "--reinstall", wheel)
    environment.assert_found()

    # Uninstalled with pip, as most users do: no trace, and nnU-Net works.
    gone = environment.run(environment.python, "-m", "pip", "uninstall", "-q", "-y", "nnunet-ext")
    assert gone.returncode == 0, gone.stderr
    assert environment.traces() == []
    environment.assert_not_found()

    # The same with uv.
    environment.pip("install", "--no-deps", wheel)
    assert environment.run(environment.python, "-c", "pass").stderr == ""
    environment.pip("uninstall", "nnunet-ext")
    assert environment.traces() == []

    # Outside site-packages no start-up file is read: not found, unless nnU-Net's own variable names the folder.
    target = environment.folder / "modules"
    environment.pip("install", "--no-deps", "--target", target, wheel)
    environment.assert_not_found(PYTHONPATH=str(target))
    shims = {"PYTHONPATH": str(target), "nnUNet_extTrainer": str(target / "nnunet_ext" / "discovery" / "shims")}
    environment.assert_found(**shims)


def unpacked_nnunet(environment: Environment) -> Path:
    """The source tree of nnU-Net, as a clone would have it."""
    options = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", "sdist", NNUNET)
    done = environment.run(environment.python, "-m", "pip", "download", "-q", *options)
    assert done.returncode == 0, done.stderr
    (archive,) = (environment.folder / "sdist").glob("nnunetv2-*")
    shutil.unpack_archive(archive, environment.folder / "source")
    (tree,) = (environment.folder / "source").iterdir()
    return tree


def test_uv_is_there():
    assert shutil.which("uv") or importlib.util.find_spec("uv"), "pip install 'nnunet-ext[test]' brings uv"
