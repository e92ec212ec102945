"""nnU-Net's search, with our answer before it: which names, where, and what happens when something fails."""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import nnunet_ext.trainers
from nnunet_ext.discovery import SHIMS, lookup, table
from nnunet_ext.discovery.table import KINDS, OWN, Entry

# An installed package has these files beside itself, not inside.
STARTUP = Path(__file__).parents[2] / "nnunet_ext" / "discovery" / "startup"
TRAINING = KINDS["trainer"] + ".nnUNetTrainer"


@pytest.fixture
def search(monkeypatch):
    """A stand-in for nnU-Net's module, `attach`ed, with entries that need neither torch nor nnU-Net."""
    entries = (
        Entry("Fraction", "fractions", "trainer"),
        Entry("Decimal", "decimal", "planner"),
        Entry("Missing", "nnunet_ext.no_such_module", "trainer"),
        Entry("NotThere", "fractions", "trainer"),
    )
    monkeypatch.setattr(table, "OWN", entries)
    module = ModuleType("search")

    def recursive_find_python_class(folder, class_name, current_module, base_folder=None, verbose=False):
        return ("nnU-Net", folder, class_name, current_module, base_folder, verbose)

    module.recursive_find_python_class = recursive_find_python_class
    lookup.attach(module)
    return module


def test_own_names_are_answered_where_they_belong(search):
    from decimal import Decimal
    from fractions import Fraction

    find = search.recursive_find_python_class
    assert find("/folder", "Fraction", TRAINING) is Fraction
    assert find(folder="/folder", class_name="Decimal", current_module="nnunetv2.experiment_planning") is Decimal


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("Fraction", "nnunetv2.experiment_planning"),
        ("Decimal", TRAINING),
        ("Fraction", None),
        ("Fraction", "nnunetv2.training_of_others"),
        ("fraction", TRAINING),
        ("nnUNetTrainer", TRAINING),
    ],
)
def test_everything_else_is_left_to_nnunet(search, name, place):
    answer = search.recursive_find_python_class("/folder", name, place, "/base", verbose=True)
    assert answer == ("nnU-Net", "/folder", name, place, "/base", True)


@pytest.mark.parametrize("name", ["Missing", "NotThere"])
def test_a_class_that_does_not_load_is_explained_in_one_line(search, name, capsys):
    assert search.recursive_find_python_class("/folder", name, TRAINING)[0] == "nnU-Net"
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith(f"nnunet_ext: {name} cannot be loaded from ")
    assert ("No module named 'nnunet_ext.no_such_module'" in err) == (name == "Missing")


def test_attaching_twice_changes_nothing_and_early_importers_are_served(search, monkeypatch):
    once = search.recursive_find_python_class
    lookup.attach(search)
    assert search.recursive_find_python_class is once

    fresh, early = ModuleType("fresh"), ModuleType("nnunetv2.early")
    fresh.recursive_find_python_class = early.recursive_find_python_class = lambda *arguments: None
    monkeypatch.setitem(sys.modules, "nnunetv2.early", early)
    lookup.attach(fresh)
    assert lookup.is_attached(early) and early.recursive_find_python_class is fresh.recursive_find_python_class


def in_fresh_interpreter(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` with the hook's folder on the path, the package itself importable, and no site-packages hook."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("NNUNET_EXT_", "nnUNet_"))}
    paths = [str(STARTUP), str(SHIMS.parents[2])]
    code = f"import sys; sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != '_Waiter']\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


IS_ATTACHED = (
    "from nnunetv2.utilities import find_class_by_name as search\n"
    "print(getattr(search.recursive_find_python_class, 'answers_for', None))\n"
)
INSTALL = "import _nnunet_ext_hook; _nnunet_ext_hook.install()\n"
WAITERS = "print(sum(type(finder).__name__ == '_Waiter' for finder in sys.meta_path))\n"


def test_the_hook_waits_attaches_and_is_gone():
    # Twice, as where lib64 links to lib.
    done = in_fresh_interpreter(
        INSTALL + INSTALL + WAITERS + "print('nnunet_ext' in sys.modules)\n" + IS_ATTACHED + WAITERS
    )
    assert (done.stdout.split(), done.stderr) == (["1", "False", "nnunet_ext", "0"], "")


def test_the_hook_also_serves_an_nnunet_imported_before_it():
    done = in_fresh_interpreter(IS_ATTACHED + INSTALL + IS_ATTACHED + WAITERS)
    assert (done.stdout.split(), done.stderr) == (["None", "nnunet_ext", "0"], "")


def test_opting_out():
    done = in_fresh_interpreter(INSTALL + WAITERS + IS_ATTACHED, NNUNET_EXT_AUTOLOAD="0")
    assert (done.stdout.split(), done.stderr) == (["0", "None"], "")


def test_a_broken_package_costs_one_line_and_leaves_nnunet_alone(tmp_path):
    (tmp_path / "nnunet_ext").mkdir()
    (tmp_path / "nnunet_ext" / "__init__.py").write_text("raise RuntimeError('two\\nlines')")
    done = in_fresh_interpreter(f"sys.path.insert(0, {str(tmp_path)!r})\n" + INSTALL + IS_ATTACHED)
    assert done.returncode == 0 and done.stdout.split() == ["None"]
    assert done.stderr == "nnunet_ext: nnU-Net goes on without its classes (RuntimeError: two lines)\n"


def test_both_start_up_files_lead_to_the_hook():
    assert (STARTUP / "nnunet_ext.pth").read_text() == INSTALL, (
        "Python runs lines of a .pth file that begin with import"
    )
    # What PEP 829 does with a line of a .start file.
    entry_point = (STARTUP / "nnunet_ext.start").read_text().strip()
    done = in_fresh_interpreter(f"import pkgutil; pkgutil.resolve_name({entry_point!r})()\n" + WAITERS + IS_ATTACHED)
    assert (done.stdout.split(), done.stderr) == (["1", "nnunet_ext"], "")


def test_every_entry_loads_and_every_trainer_is_an_entry():
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    for entry in OWN:
        assert lookup.load(entry).__module__ == entry.module, entry
    named = {(entry.module, entry.name) for entry in OWN if entry.kind == "trainer"}
    for info in pkgutil.iter_modules(nnunet_ext.trainers.__path__, "nnunet_ext.trainers."):
        if info.name.rpartition(".")[2] in ("shared", "checkpoints", "failures"):  # what trainers are made of
            continue
        module = importlib.import_module(info.name)
        for name, value in inspect.getmembers(module, inspect.isclass):
            if issubclass(value, nnUNetTrainer) and value.__module__ == info.name:
                assert (info.name, name) in named, f"{name} is missing in the rows of nnunet_ext/models"


def test_names_are_unique_and_kinds_known():
    names = [entry.name for entry in OWN]
    assert len(set(names)) == len(names)
    assert {entry.kind for entry in OWN} <= set(KINDS)
    assert not [name for name in names if "__" in name], "nnU-Net splits folder names at double underscores"


def test_second_way_hands_over_the_packaged_class(monkeypatch):
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    for entry in OWN:
        if entry.kind != "trainer":
            continue
        before = set(sys.modules)
        found = recursive_find_python_class(
            str(SHIMS), entry.name, None, base_folder=str(SHIMS), cleanup_imports_from_base_folder=True
        )
        assert found is lookup.load(entry)
        assert pickle.loads(pickle.dumps(found)) is found
        # nnU-Net drops what came from the folder, and nothing else came from there.
        assert not [
            name for name in set(sys.modules) - before if "shims" in str(getattr(sys.modules[name], "__file__", ""))
        ]
    assert [path.name for path in SHIMS.glob("*.py")] == ["nnunet_ext_trainers.py"]


def test_second_way_says_why_a_trainer_does_not_load(monkeypatch):
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    monkeypatch.setattr(table, "OWN", (Entry("Broken", "nnunet_ext.no_such_module"),))
    with pytest.raises(ImportError, match=r"Broken cannot be loaded from nnunet_ext\.no_such_module"):
        recursive_find_python_class(str(SHIMS), "Broken", None)
