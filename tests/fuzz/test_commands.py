"""Every command of `nnunet_ext` with damaged files, odd names, odd options and odd variables.

Whatever it gets, a command succeeds, or says why not in lines of its own with exit status 1 or 2. It runs nothing that
a file says, touches no input, writes nowhere else, leaves nothing unfinished, and takes bounded time and memory.
`--fuzz-seed` and `--fuzz-times` choose other inputs and more of them; a failure names the seed and the input.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import mutate, watched
from helpers.scene import Scene
from helpers.scenes import SCENES, make

from nnunet_ext.cli import data, slurm
from nnunet_ext.cli import main as cli
from nnunet_ext.environment import VARIABLES
from nnunet_ext.errors import UserError
from nnunet_ext.image_files import check_whole

BUILDERS = [builder for builders in SCENES.values() for builder in builders]
EACH_SCENE = pytest.mark.parametrize("builder", BUILDERS, ids=lambda builder: builder.__name__)
# Its imports alone take seconds.
QUICK = [builder for builder in BUILDERS if builder.__name__ != "plan_model"]
TEXTS = (
    "", " ", "0", "-1", "1", "2", "3", "1.5", "nan", "inf", "-inf", "1e999", "9" * 30, "9" * 5000, "-", "--", "-x", "=",
    "a\nb", "a\x1b[31mb", "\udcff", "é 脳 \u2028", "x" * 300, "x" * 5000, "$(touch EXECUTED)", "`touch EXECUTED`",
    "a;touch EXECUTED", "a'b", 'a"b', "%s", "{0}", "*", "**", "[", "(", "(?P<", "\\", "..", ".", "~", "a=b", "a=1",
    "=1", "1,2", ",", "1,,2", "²", "٣", "1_0", "0x10", "Dataset007_Toy", "Dataset007_*", "all", "None", "null",
)  # fmt: skip
VALUES = (
    *TEXTS,
    "auto",
    "cpu",
    "cuda",
    "bf16",
    "chunked",
    "mean",
    "ddim",
    "10000000000",
    "-0",
    "1 2",
    "0;1",
    "/",
    "/dev/null/x",
)
NNUNET = (
    "nnUNet_raw",
    "nnUNet_preprocessed",
    "nnUNet_results",
    "nnUNet_extTrainer",
    "nnUNet_def_n_proc",
    "OMP_NUM_THREADS",
)


def test_every_command_has_a_scene():
    there = {(name,) for name in cli.COMMANDS} - {("data",)}
    there |= {(name, sub) for name, module in (("data", data), ("slurm", slurm)) for sub in module.COMMANDS}
    assert set(SCENES) == there
    made = {builder: words for words, builders in SCENES.items() for builder in builders}
    assert len(made) == len(BUILDERS)


def options(scene: Scene) -> list[argparse.Action]:
    """The options of a command that take a value, but those the scene fixes."""
    parser = argparse.ArgumentParser()
    name, sub = scene.words[0], (*scene.words, "")[1]
    module = importlib.import_module("nnunet_ext.cli." + name.replace("-", "_"))
    inner = getattr(module, "COMMANDS", ())
    if sub in inner:
        module = importlib.import_module(f"nnunet_ext.cli.{name}_{sub.replace('-', '_')}")
    module.add_arguments(parser)
    return [
        action for action in parser._actions
        if action.nargs != 0 and not isinstance(action, argparse._SubParsersAction)
        and not set(action.option_strings) & set(scene.fixed)
    ]  # fmt: skip


def odd_path(scene: Scene, rng: random.Random) -> str:
    """A path that is missing, of the wrong kind, or oddly named, within the scene."""
    odd = scene.base / "odd"
    odd.mkdir(exist_ok=True)
    (odd / "file").write_text("x")
    (odd / "folder").mkdir(exist_ok=True)
    (odd / "loop").unlink(missing_ok=True)
    (odd / "loop").symlink_to("loop")
    names = (
        "missing",
        "file",
        "folder",
        "loop",
        "file/below",
        "folder/..",
        *mutate.NAMES,
        "x" * 300,
        "missing/" * 9 + "x.html",
    )
    return str(odd / rng.choice(names))


def change(scene: Scene, rng: random.Random) -> tuple[str, list[str], dict[str, str], Callable[[], None]]:
    """(what was done, words, variables, how it is undone)."""
    words, variables = list(scene.words), dict(scene.variables)
    files = sorted(path for path in scene.base.rglob("*") if path.is_file())
    kind = rng.choices(("file", "entry", "option", "variable"), (6 if files else 0, 2 if files else 0, 3, 1))[0]
    if kind == "file":
        # A kind of file first: else nearly all would be images.
        by_kind: dict[str, list[Path]] = {}
        for path in files:
            by_kind.setdefault(
                f"{path.parent.name}{path.suffix}" if path.suffix == ".json" else path.suffix, []
            ).append(path)
        path = rng.choice(by_kind[rng.choice(sorted(by_kind))])
        before = path.read_bytes()
        return (
            f"{path.name}: {mutate.file(path, rng, scene.base / 'EXECUTED')}",
            words,
            variables,
            lambda: _restore(path, before),
        )
    if kind == "entry":
        entries = sorted(
            path for path in scene.base.rglob("*") if path.relative_to(scene.base).parts[0] not in ("here", "odd")
        )
        what, undo = mutate.entry(rng.choice(entries), rng)
        return what, words, variables, undo
    if kind == "option" and (found := options(scene)):
        action = rng.choice(found)
        value = odd_path(scene, rng) if action.type is Path or rng.random() < 0.1 else rng.choice(TEXTS)
        if not action.option_strings:
            after = 2 if scene.words[:2] in SCENES else 1
            places = [at for at in range(after, len(words)) if not words[at].startswith("-")]
            words[rng.choice(places)] = value
            return f"a positional: {value[:60]!r}", words, variables, lambda: None
        name = rng.choice(action.option_strings)
        given = [at for at, word in enumerate(words) if word in action.option_strings]
        if given:
            words[given[0] + 1] = value
        else:
            words += [name, value]
        return f"{name} {value[:60]!r}", words, variables, lambda: None
    name = rng.choice([*VARIABLES, *NNUNET])
    value = odd_path(scene, rng) if rng.random() < 0.2 else rng.choice(VALUES)
    return f"{name}={value[:60]!r}", words, {**variables, name: value}, lambda: None


def _restore(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def listing(base: Path) -> dict[Path, tuple]:
    """Every entry of a folder, with what changes when it is written."""
    found = {}
    for path in base.rglob("*"):
        facts = path.lstat()
        found[path] = (
            () if path.is_dir() and not path.is_symlink() else (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        )
    return found


def left_behind(scene: Scene, before: dict[Path, tuple], status: int, changed_option: bool) -> list[str]:
    """What is wrong with the files after a run; removes what is new."""
    after = listing(scene.base)

    def may(path: Path) -> bool:
        return any(path.is_relative_to(place) for place in (scene.output, *scene.more) if place is not None)

    new = sorted(after.keys() - before.keys())
    wrong = [f"gone: {path}" for path in before.keys() - after.keys()]
    # An option can name any file as the one to be written.
    wrong += [f"changed: {path}" for path in before.keys() & after.keys() if before[path] != after[path]
              and not changed_option and not may(path)]  # fmt: skip
    for path in new:
        if ".writing-" in path.name:
            wrong.append(f"unfinished: {path}")
        elif not changed_option and not may(path):
            wrong.append(f"written: {path}")
        elif path.is_file() and not whole(path):
            wrong.append(f"half of a file: {path}")
    if status and scene.whole and not scene.finds and not changed_option and any(path.is_file() for path in new):
        wrong.append(f"failed, and left {[path.name for path in new][:5]}")
    for path in reversed(new):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return wrong


def whole(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix in (".pth", ".pt", ".zip"):
            return zipfile.ZipFile(path).testzip() is None
        elif path.name.endswith((".nii.gz", ".nii", ".png")):
            check_whole(path)
    except (ValueError, UserError, zipfile.BadZipFile):
        return False
    return True


def fuzz(builder: Callable[[Path], Scene], base: Path, printed: Callable, each: int, seed: int) -> list[str]:
    """What went wrong with `each` inputs, times the scene's weight."""
    scene = make(builder, base)
    wrong, ended = [], []

    def run(words: list[str], variables: dict[str, str], starts: bool = scene.starts) -> watched.Outcome:
        return watched.run(
            words,
            scene.base,
            printed,
            variables=variables,
            starts=starts,
            chatter=scene.chatter,
            finds=scene.finds,
        )

    with scene.prepared():
        before = listing(scene.base)
        # The first imports what is needed; some of nnU-Net's modules ask for the name of the host.
        run(list(scene.words), scene.variables, starts=True)
        left_behind(scene, before, 0, False)
        first = run(list(scene.words), scene.variables)
        assert not first.wrong and (first.status == 0 or scene.finds or scene.words[0] == "demo"), first
        assert left_behind(scene, before, 0, False) == []
        for number in range(each * scene.weight):
            rng = random.Random(f"{seed} {builder.__name__} {number}")
            what, words, variables, undo = change(scene, rng)
            before = listing(scene.base)
            outcome = run(words, variables)
            ended.append(outcome.status)
            option = words != list(scene.words)
            found = outcome.wrong + left_behind(scene, before, outcome.status, option)
            undo()
            if (scene.base / "EXECUTED").exists() or (scene.base / "here" / "EXECUTED").exists():
                found.append("executed what a file says")
            wrong += [f"seed {seed}, {builder.__name__}, input {number}: {what}: {one}" for one in found]
            shutil.rmtree(scene.base / "odd", ignore_errors=True)
    assert each < 30 or len(set(ended)) > 1 or scene.output is None, "the inputs all did nothing, or all the same"
    return wrong


@pytest.mark.parametrize("builder", QUICK, ids=lambda builder: builder.__name__)
def test_odd_input_is_one_line(builder, tmp_path, capfd, fuzz_seed):
    wrong = fuzz(builder, tmp_path, lambda: capfd.readouterr(), 3, fuzz_seed)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@EACH_SCENE
def test_much_odd_input_is_one_line_each(builder, tmp_path, capfd, fuzz_seed, fuzz_times):
    wrong = fuzz(builder, tmp_path, lambda: capfd.readouterr(), 32 * fuzz_times, fuzz_seed + 1)
    assert not wrong, "\n".join(wrong)
