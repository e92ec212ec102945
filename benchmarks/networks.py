"""Networks nobody here wrote, through `nnunet_ext plan --network`: which plan, train, resume and predict.

    python benchmarks/networks.py --data .../shared/data            # everything, then the table of docs/networks.md
    python benchmarks/networks.py --data .../shared/data --only SegResNet UNETR

Every network is planned on three data sets as a user would, by its path: Dataset004_Hippocampus (nnU-Net's patch
40x56x40), Dataset905_SCDLV (slices of 8 to 10 mm, a patch of 10x64x64) and Dataset956_HC18 (2d, 64x80). It is trained
for two steps on random labels, saved, read again, trained for one step more and then predicts a real image, cut to
little more than a patch, by nnU-Net's own predictor and by `nnunet_ext predict`: their label maps must be equal. Sizes
are small (`settings`), for a CPU. Spacing, patch and strides are those of nnU-Net's plans; nothing is preprocessed, so
that a network takes seconds. Needs monai, torchvision, timm and segmentation_models_pytorch.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from shared import write_rows

from nnunet_ext.cli.main import main as nnunet_ext
from nnunet_ext.errors import UserError
from nnunet_ext.files import read_json, write_json, write_text

RESULTS = Path(__file__).parent / "results" / "networks.csv"
PAGE = Path(__file__).parent.parent / "docs" / "networks.md"
BEGIN, END = "<!-- table: benchmarks/networks.py -->", "<!-- end of table -->"
MONAI = "monai.networks.nets."
DYNAMIC = "dynamic_network_architectures.architectures."


@dataclass(frozen=True)
class Network:
    """A network by its path, what is said besides (`more` for 2d or 3d alone), and the axes it has a form for."""

    path: str
    settings: tuple[str, ...] = ()
    axes: tuple[int, ...] = (2, 3)
    more: dict[int, tuple[str, ...]] = field(default_factory=dict)
    trust: bool = False

    def words(self, axes: int) -> list[str]:
        return [*self.settings, *self.more.get(axes, ())]


DINTS = "dints_space=@monai.networks.nets.TopologyInstance(channel_mul=0.2,num_blocks=4,num_depths=2,spatial_dims={})"
NETWORKS = {
    "UNet": Network(MONAI + "UNet"),
    "BasicUNet": Network(MONAI + "BasicUNet", ("features=[8,8,16,32,64,8]",)),
    "BasicUNetPlusPlus": Network(MONAI + "BasicUNetPlusPlus", ("features=[8,8,16,32,64,8]", "deep_supervision=True")),
    "AttentionUnet": Network(MONAI + "AttentionUnet"),
    "DynUNet": Network(MONAI + "DynUNet", ("deep_supervision=True", "deep_supr_num=1")),
    "FlexibleUNet": Network(MONAI + "FlexibleUNet", ("backbone=efficientnet-b0",)),
    "SegResNet": Network(MONAI + "SegResNet"),
    "SegResNetDS": Network(MONAI + "SegResNetDS", ("init_filters=8", "dsdepth=3")),
    "SegResNetVAE": Network(MONAI + "SegResNetVAE"),
    "SwinUNETR": Network(MONAI + "SwinUNETR", ("feature_size=12",)),
    "UNETR": Network(MONAI + "UNETR", ("feature_size=4", "hidden_size=48", "mlp_dim=96", "num_heads=4")),
    "VNet": Network(MONAI + "VNet", more={2: ("dropout_dim=2",)}),
    "HighResNet": Network(MONAI + "HighResNet"),
    "MedNeXt": Network(MONAI + "MedNeXt", ("init_filters=8", "deep_supervision=True", "kernel_size=3")),
    "AHNet": Network(MONAI + "AHNet", ("psp_block_num=0",)),
    "DiNTS": Network(MONAI + "DiNTS", more={n: (DINTS.format(n),) for n in (2, 3)}, trust=True),
    "PlainConvUNet": Network(DYNAMIC + "unet.PlainConvUNet", ("deep_supervision=True",)),
    "ResidualEncoderUNet": Network(
        DYNAMIC + "unet.ResidualEncoderUNet", ("deep_supervision=True", "n_blocks_per_stage=1")
    ),
    "Primus": Network(
        DYNAMIC + "primus.Primus",
        ("embed_dim=96", "patch_embed_size=[8,8,8]", "eva_depth=2", "eva_numheads=4"),
        (3,),
    ),
    "Unet of segmentation_models_pytorch": Network(
        "segmentation_models_pytorch.Unet", ("encoder_name=resnet18",), (2,)
    ),
    "deeplabv3_resnet50 of torchvision": Network(
        "torchvision.models.segmentation.deeplabv3_resnet50", axes=(2,), trust=True
    ),
    "SegMamba": Network(
        "nnunet_ext.architectures.segmamba.SegMamba",
        ("depths=[1,1,1,1]", "dims=[8,16,16,32]", "hidden_size=32"),
        more={2: ("strides=[[2,2],[2,2],[2,2],[1,1]]",)},
    ),
    "UNETR++": Network(
        "nnunet_ext.architectures.unetrpp.UNETRPP",
        ("dims=[8,16,16,32]", "depths=[1,1,1,1]", "num_heads=2", "patch_size=@grid"),
        (3,),
    ),
}


@dataclass(frozen=True)
class Place:
    """A data set's plans: what a network is planned for, and a real image cut to `shape` (z, y, x)."""

    dataset: str
    configuration: str
    patch: tuple[int, ...]
    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    labels: dict[str, Any]
    file_ending: str = ".nii.gz"


LEFT = {"background": 0, "LV": 1}
PLACES = {
    "Hippocampus": Place(
        "Dataset004_Hippocampus", "3d_fullres", (40, 56, 40), (1.0, 1.0, 1.0), (36, 52, 36),
        {"background": 0, "Anterior": 1, "Posterior": 2},
    ),
    "SCDLV": Place("Dataset905_SCDLV", "3d_fullres", (10, 64, 64), (8.8, 1.37, 1.37), (9, 70, 60), LEFT),
    "HC18": Place("Dataset956_HC18", "2d", (64, 80), (1.0, 1.0), (1, 70, 80), {"background": 0, "head": 1}, ".png"),
}  # fmt: skip


def prepare(base: Path, place: Place, image: Path | None = None, **dataset_json: Any) -> Path:
    """nnU-Net's folders with the plans of a data set and one image, of noise or cut from a real one.

    Args:
        base: gets nnU-Net's three folders.
        place: the data set.
        image: a real image of it.
        **dataset_json: further entries.

    Returns:
        The preprocessed folder.
    """
    from nnunet_ext.plans.fit import strides_for

    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (base / name).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(base / name)
    os.environ["nnUNet_n_proc_DA"] = "0"
    folder = base / "nnUNet_preprocessed" / place.dataset
    identifier = f"nnUNetPlans_{place.configuration}"
    (folder / identifier).mkdir(parents=True)
    (folder / identifier / "case.b2nd").write_bytes(b"")  # tells nnU-Net how cases are stored; never read
    strides = [list(stride) for stride in strides_for(place.spacing, place.patch)]
    axes, stages = len(place.patch), len(strides)
    kernels = [[1 if axes == 3 and place.spacing[0] > 2 * place.spacing[1] and i < 2 else 3] + [3] * (axes - 1)
               for i in range(stages)]  # fmt: skip
    # The widths of nnU-Net's plans are for GPUs.
    unet = {
        "n_stages": stages, "features_per_stage": [min(8 * 2**i, 64) for i in range(stages)], "strides": strides,
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d", "kernel_sizes": kernels, "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    resampling = {
        f"resampling_fn_{what}{end}": value
        for what, order in (("data", 3), ("seg", 1), ("probabilities", 1))
        for end, value in (
            ("", "resample_data_or_seg_to_shape"),
            ("_kwargs", {"is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}),
        )
    }
    configuration = {
        "data_identifier": identifier, "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": list(place.patch), "median_image_size_in_voxels": [float(n) for n in place.patch],
        "spacing": list(place.spacing), "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False],
        "batch_dice": False, **resampling,
        "architecture": {
            "network_class_name": DYNAMIC + "unet.PlainConvUNet", "arch_kwargs": unet,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }  # fmt: skip
    order = [0, 1, 2]
    plans = {
        "dataset_name": place.dataset, "plans_name": "nnUNetPlans", "label_manager": "LabelManager",
        "image_reader_writer": "NaturalImage2DIO" if place.file_ending == ".png" else "SimpleITKIO",
        "transpose_forward": order, "transpose_backward": order,
        "original_median_spacing_after_transp": list(place.spacing), "experiment_planner_used": "ExperimentPlanner",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {place.configuration: configuration},
    }  # fmt: skip
    description = {
        "channel_names": {"0": "MRI"}, "labels": place.labels, "numTraining": 5, "file_ending": place.file_ending,
        **dataset_json,
    }  # fmt: skip
    write_json(folder / "nnUNetPlans.json", plans)
    write_json(folder / "dataset.json", description)
    _write_image(base / "images" / f"case_0000{place.file_ending}", place, image)
    return folder


def _write_image(path: Path, place: Place, source: Path | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if source is not None:
        whole = sitk.GetArrayFromImage(sitk.ReadImage(str(source)))
        whole = whole if whole.ndim == 3 else whole[None]
        starts = [max(0, (n - wanted) // 2) for n, wanted in zip(whole.shape, place.shape, strict=True)]
        array = whole[tuple(slice(s, s + n) for s, n in zip(starts, place.shape, strict=True))]
    else:
        array = np.random.default_rng(0).normal(100, 30, place.shape)
    if place.file_ending == ".png":
        sitk.WriteImage(sitk.GetImageFromArray(array[0].clip(0, 255).astype(np.uint8)), str(path))
        return
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing([float(s) for s in reversed(place.spacing)])
    sitk.WriteImage(image, str(path))


def plan(network: Network, place: Place, *more: str) -> dict[str, Any]:
    """What `nnunet_ext plan --network` writes and prints as JSON.

    Raises:
        UserError: it refuses; the message is its line.
    """
    out, err = io.StringIO(), io.StringIO()
    settings = network.words(len(place.patch))
    command = ["plan", "-d", place.dataset, "--network", network.path, "-c", place.configuration, "--json", *more]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = nnunet_ext(command + (["--set", *settings] if settings else []))
    if status:
        raise UserError(err.getvalue().strip().splitlines()[-1].removeprefix("nnunet_ext plan: "))
    return json.loads(out.getvalue())


def rehearse(plans_file: Path, base: Path, configuration: str, *, trust: bool = False) -> Path:
    """Train two steps, save, read, train one more, and predict twice; the label maps must be equal.

    Returns:
        The model's folder.

    Raises:
        AssertionError: a loss that is not finite, weights that do not move, or label maps that differ.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunet_ext.trainers.adapted import nnUNetTrainerNetwork

    def trainer() -> nnUNetTrainerNetwork:
        torch.manual_seed(0)
        plans = {**read_json(plans_file), "continue_training": False}
        description = read_json(plans_file.parent / "dataset.json")
        made = nnUNetTrainerNetwork(plans, configuration, 0, description, torch.device("cpu"))
        made.initialize()
        return made

    first = trainer()
    before = {name: value.clone() for name, value in first.network.state_dict().items()}
    for _ in range(2):
        assert np.isfinite(first.train_step(batch_for(first))["loss"])
    moved = [name for name, value in first.network.state_dict().items() if not torch.equal(value, before[name])]
    assert moved, "nothing was learned"
    first.network.eval()
    with torch.no_grad():
        assert np.isfinite(first.validation_step(batch_for(first))["loss"])
    checkpoint = Path(first.output_folder, "checkpoint_final.pth")
    first.save_checkpoint(str(checkpoint))
    second = trainer()
    second.load_checkpoint(str(checkpoint))
    for name, value in second.network.state_dict().items():
        assert torch.equal(value, first.network.state_dict()[name]), name
    second.train_step(batch_for(second))
    second.save_checkpoint(str(checkpoint))
    folder = Path(first.output_folder_base)
    write_json(folder / "plans.json", read_json(plans_file))
    write_json(folder / "dataset.json", first.dataset_json)

    theirs, ours = folder / "theirs", folder / "ours"
    theirs.mkdir()
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False,
                                use_mirroring=False)  # fmt: skip
    predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    predictor.predict_from_files_sequential(str(base / "images"), str(theirs))
    words = ["predict", "-m", folder, "-i", base / "images", "-o", ours, "-f", "0", "-device", "cpu", "--disable_tta"]
    assert nnunet_ext([*map(str, words), *(["--trust"] if trust else [])]) == 0
    ending = first.dataset_json["file_ending"]
    maps = [sitk.GetArrayFromImage(sitk.ReadImage(str(which / f"case{ending}"))) for which in (theirs, ours)]
    assert np.array_equal(*maps), f"{(maps[0] != maps[1]).mean():.2%} of the labels differ"
    return folder


def batch_for(trainer: Any) -> dict[str, Any]:
    """Noise with random labels, in the form nnU-Net's loaders give it to this trainer."""
    from nnunet_ext.steps import supervised

    settings, labels = trainer.configuration_manager, trainer.label_manager
    image = torch.randn(settings.batch_size, trainer.num_input_channels, *settings.patch_size)
    targets = supervised.example(trainer.bare_network(), image, labels.num_segmentation_heads).target

    def drawn(target: torch.Tensor) -> torch.Tensor:
        if labels.has_regions:
            return torch.rand(len(image), labels.num_segmentation_heads, *target.shape[2:]) > 0.5
        return torch.randint(0, max(labels.all_labels) + 1 + labels.has_ignore_label, target.shape, dtype=torch.int16)

    target = [drawn(t) for t in targets] if isinstance(targets, list) else drawn(targets)
    return {"data": image, "target": target, "keys": ["noise"]}


def row_of(name: str, network: Network, where: str, base: Path, image: Path | None) -> dict[str, Any]:
    """One line of the table: what was found out, and whether it works, or what it wants."""
    place, start = PLACES[where], time.process_time()
    row = {"network": name, "path": network.path, "settings": " ".join(network.words(len(place.patch))), "data": where}
    folder = prepare(base, place, image)
    try:
        planned = plan(network, place, "--patch-size", *map(str, place.patch))
        (configuration,) = planned["configurations"]
        found = configuration["arguments"]["found"]
        row |= {
            "called_with": found["called with"], "sizes": found["sizes"], "training": found["training returns"],
            "evaluation": found["evaluation returns"], "parameters": configuration["parameters"],
            "gigabytes": configuration["gigabytes"], "autocast": found["autocast"],
            "plan_cpu_seconds": round(time.process_time() - start, 1),
        }  # fmt: skip
        rehearse(folder / Path(planned["plans"]).name, base, place.configuration, trust=network.trust)
        row["works"] = "yes"
    except UserError as error:
        row["works"] = f"no: {error}"
    row["cpu_seconds"] = round(time.process_time() - start, 1)
    return row


COLUMNS = ("network", "path", "settings", "data", "works", "called_with", "sizes", "training", "evaluation",
           "parameters", "gigabytes", "autocast", "plan_cpu_seconds", "cpu_seconds", "date", "cpu", "python",
           "versions")  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Of the page: a line per network, with what it wants on Hippocampus, or in 2d where it has no other form."""
    lines = ["| network | `--set` | sizes | returns in training | parameters | 40x56x40 | 8 to 10 mm slices | 2d |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in dict.fromkeys(row["network"] for row in rows):
        of = {row["data"]: row for row in rows if row["network"] == name}
        best = next((row for row in of.values() if row["works"] == "yes"), next(iter(of.values())))
        forms = [where for where, place in PLACES.items() if len(place.patch) in NETWORKS[name].axes]
        cells = [_works(of[w]) if w in of else "not run" if w in forms else "no form" for w in PLACES]
        settings = ", ".join(f"`{word}`" for word in best["settings"].split()) or "nothing"
        sizes = (best.get("sizes") or "").split("; the patch")[0]
        parameters = f"{int(best['parameters']) / 1e6:.2f} M" if best.get("parameters") else ""
        line = (f"`{best['path'].rpartition('.')[2]}`", settings, sizes, best.get("training") or "", parameters, *cells)
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |")
    return "\n".join(lines)


def _works(row: dict[str, Any]) -> str:
    if row["works"] != "yes":
        return row["works"]
    padded = re.search(r"padded to ([\dx]+)", row["sizes"])
    return f"yes{f' (padded to {padded[1]})' if padded else ''}, {float(row['gigabytes']):.1f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the three data sets; without it images are noise")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    if RESULTS.is_file():
        with open(RESULTS, newline="", encoding="utf-8") as file:
            rows = {(row["network"], row["data"]): row for row in csv.DictReader(file)}
    for name in arguments.only:
        for where in arguments.places:
            place, network = PLACES[where], NETWORKS[name]
            if len(place.patch) not in network.axes:
                continue
            images = sorted((arguments.data / place.dataset / "imagesTr").iterdir()) if arguments.data else [None]
            with tempfile.TemporaryDirectory() as base, contextlib.redirect_stdout(io.StringIO()):
                shown = row_of(name, network, where, Path(base), images[0])
            print(f"{name:20} {where:12} {shown['cpu_seconds']:6} s  {shown['works'][:300]}", flush=True)
            rows[name, where] = shown
            save([rows[n, w] for n in NETWORKS for w in PLACES if (n, w) in rows])


def save(rows: list[dict[str, Any]]) -> None:
    """All rows there are, and the table of the page; what was not run now is kept."""
    packages = ("nnunetv2", "torch", "monai", "torchvision", "segmentation_models_pytorch", "timm")
    with contextlib.redirect_stdout(io.StringIO()):
        write_rows(RESULTS, COLUMNS, rows, packages)
    text = PAGE.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    write_text(PAGE, f"{text[:start]}\n{table(rows)}\n{text[end:]}")


if __name__ == "__main__":
    main()
