"""nnU-Net's prediction of a folder, in one process: equal labels, exact fast export, and no case lost to another.

The network, the sliding window, mirroring and the mean over folds are nnU-Net's own. What differs is around them: the
next image is read and preprocessed, and the last one resized and written, by threads of this process, where nnU-Net
starts worker processes that each import torch anew; files appear whole or not at all; a case that cannot be read is
reported and the others are finished.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

from nnunet_ext.cases import find_cases
from nnunet_ext.diffusion.samples_file import write_samples
from nnunet_ext.errors import UserError, reason_of
from nnunet_ext.files import remove_leftovers, write_json, writing_prefix
from nnunet_ext.image_files import check_whole, check_written, read_image
from nnunet_ext.inference.export import check_finite, segmentation_of_logits
from nnunet_ext.inference.model_files import channels_of
from nnunet_ext.inference.samples import DrawsSamples, draw_apart, mean_over_mirrors
from nnunet_ext.ops.backends import taken_by
from nnunet_ext.plans.preprocessor import ExactFastPreprocessor
from nnunet_ext.quiet import quiet_predictor

PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class PredictionCase:
    """One image to predict.

    Attributes:
        name: without channel number and ending.
        images: one file per channel.
        output: the label map to write.
        previous_stage: label map of the low-resolution stage of a cascade, or a mask to refine, if the network takes
            one.
    """

    name: str
    images: tuple[Path, ...]
    output: Path
    previous_stage: Path | None = None


@dataclass(frozen=True)
class Done:
    """A finished case: seconds of the network alone, or why it failed."""

    case: PredictionCase
    seconds: float
    failure: str | None = None


class FolderPredictor(nnUNetPredictor):
    """nnU-Net's predictor with preprocessing and export in threads beside it.

    Args:
        precision: of the network. On a CPU fp32, as nnU-Net, or bf16, which processors with bf16 units compute in half
            the time or less; on CUDA fp16, as nnU-Net, bf16 or fp32.
        **options: nnU-Net's.
    """

    def __init__(self, *, precision: str | None = None, **options: Any) -> None:
        with quiet_predictor():
            super().__init__(**options)
        default = "fp16" if self.device.type == "cuda" else "fp32"
        self.precision = precision or default
        if self.precision == "fp16" and self.device.type != "cuda":
            raise UserError(f"--precision fp16 needs a CUDA device, not {self.device.type}; use bf16 or fp32")

    def predict_folder(
        self,
        cases: Sequence[PredictionCase],
        *,
        threads: int = 1,
        export_threads: int | None = None,
        save_probabilities: bool = False,
        samples_folder: Path | None = None,
    ) -> Iterator[Done]:
        """Predict cases in order; yields each when its file is written.

        Args:
            cases: what to predict.
            threads: cases that are preprocessed ahead at the same time.
            export_threads: cases that are resized and written behind at the same time; None takes as many.
            save_probabilities: also write nnU-Net's .npz and .pkl, which needs every class at full size.
            samples_folder: for networks that draw samples: each is stitched for itself, written here
                (`nnunet_ext.diffusion.samples_file`) and fused after that, not window by window.

        Raises:
            UserError: `samples_folder` for a network that draws none, or a backend that does not run here.
        """
        if samples_folder is not None and not (isinstance(self.network, DrawsSamples) and self.network.sampling.steps):
            raise UserError(
                "--save_samples needs a network that draws samples, such as MedSegDiff-V2, and at least one step"
            )
        try:
            taken = taken_by(self.network, self.device)
        except ValueError as error:
            raise UserError(str(error)) from None
        if taken:
            print(f"nnunet_ext: {', '.join(f'{k} by {v}' for k, v in taken.items())}", file=sys.stderr)
        writers = max(1, min(threads if export_threads is None else export_threads, len(cases)))
        threads = max(1, min(threads, len(cases)))
        with ThreadPoolExecutor(threads) as before, ThreadPoolExecutor(writers) as behind:
            waiting = [before.submit(self.prepare, case) for case in cases[:threads]]
            exports: list[Future[Done]] = []
            for position, case in enumerate(cases):
                try:
                    data, properties = waiting.pop(0).result()
                    if position + threads < len(cases):
                        waiting.append(before.submit(self.prepare, cases[position + threads]))
                    started = time.perf_counter()
                    if samples_folder is None:
                        logits, samples = self._predict_whole(data), None
                    else:
                        logits, samples = draw_apart(self.network, partial(self._predict_whole, data))
                    seconds = time.perf_counter() - started
                except Exception as error:  # whatever it is, the other cases can be predicted
                    if position + threads < len(cases) and len(waiting) < threads:
                        waiting.append(before.submit(self.prepare, cases[position + threads]))
                    yield Done(case, 0.0, reason_of(error))
                    continue
                drawn = None if samples is None or samples_folder is None else (samples_folder, samples)
                arguments = (case, logits, properties, seconds, save_probabilities, drawn)
                exports.append(behind.submit(self.export, *arguments))
                # No more results in memory than threads work on.
                while len(exports) > writers or (exports and exports[0].done()):
                    yield exports.pop(0).result()
            for export in exports:
                yield export.result()

    @property
    def channels(self) -> int:
        """Of the images, without those of a previous stage."""
        return channels_of(self.dataset_json)

    @property
    def colours(self) -> bool:
        """Whether nnU-Net's reader of this model takes several channels from one file."""
        return issubclass(self.plans_manager.image_reader_writer_class, NaturalImage2DIO)

    def prepare(self, case: PredictionCase) -> tuple[torch.Tensor, dict]:
        """The preprocessed image (channels, *grid) of a case, and what its preprocessing noted."""
        for path in (*case.images, *([case.previous_stage] if case.previous_stage else [])):
            check_whole(path)
        if self.colours:
            paths = [str(path) for path in case.images]
            found = len(self.plans_manager.image_reader_writer_class().read_images(paths)[0])
            if found != self.channels:
                held = f"{paths[0]} holds" if len(paths) == 1 else f"the {len(paths)} files of {case.name} hold"
                raise UserError(f"{held} {found} channel(s); this model takes {self.channels}")
        chosen = self.configuration_manager.preprocessor_class
        # Same output, a tenth of the time.
        preprocessor = (ExactFastPreprocessor if chosen is DefaultPreprocessor else chosen)(verbose=False)
        data, previous, properties = preprocessor.run_case(
            [str(path) for path in case.images],
            str(case.previous_stage) if case.previous_stage else None,
            self.plans_manager,
            self.configuration_manager,
            self.dataset_json,
        )
        if case.previous_stage:
            labels = self.label_manager.foreground_labels
            data = np.vstack((data, convert_labelmap_to_one_hot(previous[0], labels, data.dtype)))
        return torch.from_numpy(data).to(torch.float32, memory_format=torch.contiguous_format), properties

    def _predict_whole(self, data: torch.Tensor) -> torch.Tensor:
        """Logits (classes, *grid) of a preprocessed image (channels, *grid), in main memory."""
        return self.predict_logits_from_preprocessed_data(data).cpu()

    def export(
        self,
        case: PredictionCase,
        logits: torch.Tensor,
        properties: dict,
        seconds: float,
        dense: bool,
        drawn: tuple[Path, list[torch.Tensor]] | None = None,
    ) -> Done:
        """Resize logits (classes, *grid of the preprocessed image) and write the label map; whole files or none.

        Args:
            case: its name and output count.
            logits: of the case.
            properties: what its preprocessing noted.
            seconds: of the network, passed on.
            dense: also write nnU-Net's probabilities.
            drawn: folder and logits of the samples, to be written too.
        """
        # A folder beside the result: nnU-Net's writers choose the format by the ending, and write more than one file
        # (of a TIFF, NAME.json with its spacing).
        folder = case.output.with_name(writing_prefix() + case.name)
        whole = folder / case.output.name
        try:
            remove_leftovers(case.output.with_name(case.name))
            folder.mkdir()
            for values in (logits, *(drawn[1] if drawn is not None else ())):
                check_finite(values)
            if dense:
                truncated = str(folder / case.name)
                arguments = (self.configuration_manager, self.plans_manager, self.dataset_json, truncated, True, 1)
                export_prediction_from_logits(logits, properties, *arguments)
            else:
                self._write(logits, properties, whole)
            check_written(whole, math.prod(properties["shape_before_cropping"]), case.output)
            if drawn is not None:
                self._write_samples(case, drawn, properties, folder / "samples")
            # The label map last: where it is, all that belongs to it is.
            for path in sorted(folder.iterdir(), key=lambda path: path == whole):
                os.replace(path, case.output.with_name(path.name))
        except Exception as error:
            return Done(case, seconds, reason_of(error))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return Done(case, seconds)

    def _write(self, logits: torch.Tensor, properties: dict, path: Path) -> None:
        managers = (self.plans_manager, self.configuration_manager, self.label_manager)
        segmentation = segmentation_of_logits(logits, *managers, properties)
        self.plans_manager.image_reader_writer_class().write_seg(segmentation, str(path), properties)

    def _write_samples(
        self, case: PredictionCase, drawn: tuple[Path, list[torch.Tensor]], properties: dict, folder: Path
    ) -> None:
        """Write the samples of a case; `folder` is for what is needed meanwhile."""
        folder.mkdir()
        trial = folder / f"sample{self.dataset_json['file_ending']}"
        maps = []
        for sample in drawn[1]:
            # By way of a file, because some of nnU-Net's readers turn images.
            self._write(sample, properties, trial)
            result = case.output.with_name(f"{case.name}-{trial.name}")
            check_written(trial, math.prod(properties["shape_before_cropping"]), result)
            maps.append(sitk.GetArrayFromImage(read_image(trial)))
        settings = {**asdict(self.network.sampling), "image": str(case.images[0].absolute())}
        write_samples(drawn[0], case.name, np.stack(maps), str(trial), settings=settings)
        shutil.rmtree(folder)

    def _internal_predict_sliding_window_return_logits(self, data: torch.Tensor, slicers: list, do_on_device=True):
        # The windows come in this order, and all over again when a GPU's memory did not suffice.
        self._windows = iter([(window, tuple(data.shape[1:])) for window in slicers])
        return super()._internal_predict_sliding_window_return_logits(data, slicers, do_on_device)

    def _internal_maybe_mirror_and_predict(self, x: torch.Tensor) -> torch.Tensor:
        device = self.device.type
        if self.precision == "bf16":
            context: Any = torch.autocast(device, torch.bfloat16)
        elif self.precision == "fp32" and device == "cuda":
            context = torch.autocast(device, enabled=False)  # inside nnU-Net's own fp16
        else:
            context = nullcontext()
        with context:
            if isinstance(self.network, DrawsSamples):
                window, volume = next(self._windows)
                origin = tuple(place if isinstance(place, int) else place.start for place in window[1:])
                axes = (self.allowed_mirroring_axes or ()) if self.use_mirroring else ()
                prediction = mean_over_mirrors(self.network, x, origin, volume, axes)
            else:
                prediction = super()._internal_maybe_mirror_and_predict(x)
        # The Gaussian weights and the sums are half precision, which has more digits than bf16.
        return prediction.float() if self.precision == "bf16" else prediction


def cases_of(
    folder: Path, output: Path, ending: str, channels: int, previous_stage: Path | None = None, colours: bool = False
) -> list[PredictionCase]:
    """The cases of a folder with nnU-Net's names, NAME_0000.ENDING for the first channel.

    Args:
        folder: of images.
        output: for label maps.
        ending: of both.
        channels: of a case.
        previous_stage: folder of label maps that the network takes, too.
        colours: a file may hold several channels, as for nnU-Net's reader of natural images; how many is seen when it
            is read.

    Raises:
        UserError: see `nnunet_ext.cases.find_cases`; or the previous stage's label map of a case is missing.
    """
    cases = []
    for name, files in find_cases(folder, (ending,), channels, colours=colours).items():
        previous = previous_stage / f"{name}{ending}" if previous_stage else None
        if previous is not None and not previous.is_file():
            raise UserError(f"-prev_stage_predictions lacks {previous.name}; every image needs one")
        cases.append(PredictionCase(name, files, output / f"{name}{ending}", previous))
    return cases


def is_complete(case: PredictionCase, save_probabilities: bool) -> bool:
    """Whether the result of a former run is whole and on the grid of its image; existence proves neither."""
    if save_probabilities and not all(case.output.with_name(case.name + kind).is_file() for kind in (".npz", ".pkl")):
        return False
    try:
        label_map, image = read_image(case.output), read_image(case.images[0])
    except UserError:
        return False
    return label_map.GetSize() == image.GetSize() and np.allclose(label_map.GetSpacing(), image.GetSpacing(), rtol=1e-4)


def write_arguments(predictor: FolderPredictor, output: Path, arguments: dict[str, Any]) -> None:
    """The files nnU-Net leaves beside predictions: arguments, dataset.json and plans.json."""
    write_json(output / "predict_from_raw_data_args.json", arguments)
    write_json(output / "dataset.json", predictor.dataset_json)
    write_json(output / "plans.json", predictor.plans_manager.plans)
