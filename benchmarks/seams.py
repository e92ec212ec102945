"""Do overlapping windows of MedSegDiff-V2 agree better when their noise is cut from one field of the volume?

    python benchmarks/seams.py --model RESULTS/DATASET/nnUNetTrainerMedSegDiffV2__PLANS__3d_fullres --data PREPROCESSED

draws every window of the validation cases of fold 0 with the same noise for each window, as under nnUNetv2_predict,
and with noise by place, as under nnunet_ext predict; prints the Dice between windows where they overlap, and that of
the whole case with the reference. DATA is the folder with the preprocessed cases.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_ext.architectures.medsegdiff.sampled import SampledMedSegDiffV2
from nnunet_ext.diffusion.sampling import Place
from nnunet_ext.files import read_json
from nnunet_ext.inference.predictor import FolderPredictor


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Of everything but background; NaN where both have none."""
    total = (a > 0).sum() + (b > 0).sum()
    return 2 * ((a == b) & (a > 0)).sum() / total if total else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=10)
    arguments = parser.parse_args()
    predictor = FolderPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(arguments.model), [0], "checkpoint_final.pth")
    network, patch = predictor.network, tuple(predictor.configuration_manager.patch_size)
    assert isinstance(network, SampledMedSegDiffV2)
    network.load_state_dict(predictor.list_of_parameters[0])
    network.eval()
    cases = read_json(arguments.data.parent / "splits_final.json")[0]["val"][: arguments.cases]
    dataset = infer_dataset_class(str(arguments.data))(str(arguments.data), cases)
    agreement: dict[bool, list[float]] = {True: [], False: []}
    scores: dict[bool, list[float]] = {True: [], False: []}
    for case in dataset.identifiers:
        data, segmentation, *_ = dataset.load_case(case)
        image, reference = torch.from_numpy(np.array(data[:])), np.array(segmentation[0])
        if any(n < p for n, p in zip(image.shape[-len(patch) :], patch, strict=True)):
            missing = [max(p - n, 0) for n, p in zip(image.shape[1:], patch, strict=True)]
            image = torch.nn.functional.pad(image, [n for size in reversed(missing) for n in (0, size)])
            reference = np.pad(reference, [(0, n) for n in missing])
        volume = tuple(image.shape[1:])
        windows = predictor._internal_get_sliding_window_slicers(volume)
        for by_place in (True, False):
            found, summed = [], torch.zeros(network.num_classes, *volume)
            for window in windows:
                origin = tuple(place if isinstance(place, int) else place.start for place in window[1:])
                network.place = Place(origin, volume) if by_place else None
                with torch.inference_mode():
                    logits = network(image[window][None])[0]
                summed[window] += logits
                labels = np.full(volume, -1)
                labels[window[1:]] = logits.argmax(0).numpy()
                found.append(labels)
            for one, other in itertools.combinations(found, 2):
                shared = (one >= 0) & (other >= 0)
                if shared.any():
                    agreement[by_place].append(dice(one[shared], other[shared]))
            scores[by_place].append(dice(summed.argmax(0).numpy(), reference))
    network.place = None
    for by_place, name in ((False, "same noise for every window"), (True, "noise by place")):
        pairs = np.array(agreement[by_place])
        print(
            f"{name}: Dice between overlapping windows {np.nanmean(pairs):.3f} ({np.isfinite(pairs).sum()} pairs), "
            f"with the reference {np.mean(scores[by_place]):.3f} ({len(scores[by_place])} cases)"
        )


if __name__ == "__main__":
    main()
