"""Loading: nnU-Net's worker processes against threads of the training, batches of the same cases.

    python benchmarks/loader.py                              # 4 and 1 channels at 128^3: 1 and 2 cores, 12 workers
    python benchmarks/loader.py --patches 1x128x128x128 --rounds 2
    python benchmarks/loader.py --reading                    # blosc2: all of nnU-Net's box against what is looked at

Each measurement is a fresh process that may use the given cores only, imports nnU-Net's trainer, makes a loader with
nnU-Net's training transforms and its numbers of workers and of batches ahead, and takes batches of two samples. Rows
tell:

* first_seconds: from the start of the process to the first batch in hand,
* samples_per_second: while batches are taken as fast as they come, those in the queues at the start not counted,
* samples_per_cpu_second: the same for the CPU seconds of all processes together,
* pss_mb: memory of all processes together, shared pages counted once, with full queues (Linux).

The two loaders take turns, so that a busy machine is busy for both; `--rounds` says how often, and rows hold medians.
That batches are equal is tested (tests/augmentation), and one is compared here before the clock starts. Results are
appended to a CSV file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

START = time.time()
os.environ["OMP_NUM_THREADS"] = "1"

RESULTS = Path(__file__).parent / "results" / "loader.csv"
LOADERS = ("processes", "threads")
BATCH_SIZE = 2


def make_cases(folder: Path, channels: int, size: tuple[int, ...], patch: tuple[int, ...]) -> None:
    """Four cases as nnU-Net's preprocessing stores them."""
    import numpy as np
    from augmentation import sample
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    for number in range(4):
        made = sample(channels, size, seed=number)
        image, labels = made["image"].numpy(), made["segmentation"].numpy().astype(np.int8)
        places = {k: np.argwhere(labels == k)[::97][:10000] for k in range(1, 4)}
        blocks, chunks = comp_blosc2_params(image.shape, patch, 4)
        blocks_seg, chunks_seg = comp_blosc2_params(labels.shape, patch, 1)
        nnUNetDatasetBlosc2.save_case(
            image, labels, {"class_locations": places}, str(folder / f"case_{number}"), chunks=chunks, blocks=blocks,
            chunks_seg=chunks_seg, blocks_seg=blocks_seg,
        )  # fmt: skip


def nnunet_loader(folder: str, patch: tuple[int, ...]):
    from augmentation import transforms
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    composed, cut = transforms(patch)
    labels = LabelManager({"background": 0, "a": 1, "b": 2, "c": 3}, None)
    data = nnUNetDatasetBlosc2(folder)
    return nnUNetDataLoader(data, BATCH_SIZE, cut, patch, labels, 0.33, transforms=composed)


def tree() -> list[int]:
    """This process and its children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [os.getpid(), *map(int, children)]


def cpu_seconds() -> float:
    ticks = 0
    for pid in tree():
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def pss_mb() -> float:
    total = 0
    for pid in tree():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return total / 1024


def measure(kind: str, folder: str, patch: list[int], cores: int, workers: int, batches: int) -> dict[str, float]:
    """What one loader does in this process."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    import torch
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

    import nnunet_ext.trainers.plain  # noqa: F401 (what a training imports)
    from nnunet_ext.augmentation.batches import Batches
    from nnunet_ext.augmentation.threads import ThreadLoader

    torch.set_num_threads(1)
    loader, cached = nnunet_loader(folder, tuple(patch)), max(6, workers // 2)
    if kind == "threads":
        made = ThreadLoader(Batches(loader, seed=1).make, workers, 2 * cached + workers)
    else:
        made = NonDetMultiThreadedAugmenter(loader, None, workers, cached, wait_time=0.002)
    next(made)
    found = {"first_seconds": time.time() - START}
    if batches == 0:
        # Until the queues are full nothing is taken; then all wait.
        used = cpu_seconds()
        while True:
            time.sleep(2)
            used, before = cpu_seconds(), used
            if used - before < 0.1:
                break
        found["pss_mb"] = pss_mb()
    else:
        for _ in range(2 * cached + workers):  # made before the clock, at whatever pace
            next(made)
        begin, used = time.time(), cpu_seconds()
        for _ in range(batches):
            next(made)
        found["samples_per_second"] = batches * BATCH_SIZE / (time.time() - begin)
        found["samples_per_cpu_second"] = batches * BATCH_SIZE / (cpu_seconds() - used)
    if kind == "threads":
        made.close()
    else:
        made._finish()
    return found


def check(folder: str, patch: tuple[int, ...]) -> None:
    """One batch of both from the same seeds."""
    import copy

    import numpy as np
    import torch

    from nnunet_ext.augmentation.batches import Batches
    from nnunet_ext.augmentation.randomness import Random

    loader = nnunet_loader(folder, patch)
    batches = Batches(copy.deepcopy(loader), seed=0)
    np.random.seed(3)  # noqa: NPY002 (nnU-Net draws from it)
    torch.manual_seed(3)
    expected = next(loader)
    Random.of_batch = classmethod(lambda cls, *_: cls(3, 3))  # type: ignore[method-assign]
    found = batches.make(0)
    error = (found["data"] - expected["data"]).abs().max() / (expected["data"].max() - expected["data"].min())
    if error > 1e-5 or any(not torch.equal(a, b) for a, b in zip(found["target"], expected["target"], strict=True)):
        raise SystemExit("the batches differ; no row")


def reading(folder: str, patch: tuple[int, ...]) -> dict[str, float]:
    """CPU seconds of reading a patch's image and labels: nnU-Net's box, and the middle that an unturned patch shows."""
    from augmentation import transforms
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    from nnunet_ext.augmentation.patches import Case
    from nnunet_ext.augmentation.spatial import Window

    data, (_, cut) = nnUNetDatasetBlosc2(folder), transforms(patch)
    middle = Window(cut, tuple((c - p) // 2 for c, p in zip(cut, patch, strict=True)), patch)
    found = {}
    for name, window in (("read_all", Window.whole(cut)), ("read_middle", middle)):
        times = []
        for number in range(12):
            start = time.process_time()
            Case(data, data.identifiers[number % 4]).read((3, 5, 7), window)
            times.append(time.process_time() - start)
        found[name] = statistics.median(times)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", nargs="+", default=["4x128x128x128", "1x128x128x128"], help="CHANNELSxPATCH")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=12, help="taken while the clock runs, per core")
    parser.add_argument("--reading", action="store_true", help="reading of blosc2 files only")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)  # one loader, in a process of its own
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(*json.loads(args.child))))
        return
    from selective_scan import append, hardware, version

    for text in args.patches:
        channels, *patch = map(int, text.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            make_cases(Path(folder), channels, tuple(n + 100 for n in patch), tuple(patch))
            if args.reading:
                print(text, {name: round(value, 4) for name, value in reading(folder, tuple(patch)).items()})
                continue
            check(folder, tuple(patch))
            for cores, workers, batches in ((1, 1, args.batches), (2, 2, 2 * args.batches), (2, 12, 0)):
                found: dict[str, list[dict[str, float]]] = {kind: [] for kind in LOADERS}
                for _ in range(args.rounds):
                    for kind in LOADERS:
                        words = json.dumps([kind, folder, patch, cores, workers, batches])
                        command = [sys.executable, "-W", "ignore", __file__, "--child", words]
                        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                        found[kind].append(json.loads(done.stdout.splitlines()[-1]))
                        print(text, cores, workers, kind, found[kind][-1], flush=True)
                for kind in LOADERS:
                    names = ("first_seconds", "samples_per_second", "samples_per_cpu_second", "pss_mb")
                    values = {
                        name: round(statistics.median(f[name] for f in found[kind]), 3)
                        if name in found[kind][0]
                        else ""
                        for name in names
                    }
                    row = {
                        "date": time.strftime("%Y-%m-%d"), "loader": kind, "patch": text, "cores": cores,
                        "workers": workers, "rounds": args.rounds, **values, "hardware": hardware("cpu"),
                        "nnunetv2": version("nnunetv2"), "batchgenerators": version("batchgenerators"),
                        "torch": version("torch"),
                    }  # fmt: skip
                    append(args.out, row)


if __name__ == "__main__":
    main()
