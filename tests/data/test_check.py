"""Every defect that nnU-Net's own integrity check lets pass, or stops at with a riddle, is planted here and found."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from helpers import zoo
from helpers.blobs import CASES, load, make, write
from helpers.mutate import NIFTI
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from skimage.io import imsave

from nnunet_ext.data.check import check_dataset
from nnunet_ext.data.check_page import render_page
from nnunet_ext.data.clean import clean_dataset
from nnunet_ext.data.cohort import grouped_folds, patient_groups
from nnunet_ext.data.findings import CHECKS
from nnunet_ext.data.layout import read_layout
from nnunet_ext.errors import UserError

REPOSITORY = Path(__file__).parents[2]
IMAGE, LABEL = "imagesTr/a_01_0000.nii.gz", "labelsTr/a_01.nii.gz"


def change(name, function, dtype=None):
    """A plant that rewrites the voxels of one file."""

    def plant(folder):
        array, affine = load(folder, name)
        array = function(array.astype(dtype or array.dtype))
        write(folder / name, array, affine)

    return plant


def header(name, function):
    """A plant that edits the header of one file, given (nibabel image)."""

    def plant(folder):
        array, affine = load(folder, name)
        image = nibabel.Nifti1Image(array, affine)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        function(image)
        nibabel.save(image, folder / name)

    return plant


def both(function):
    """A plant that moves image and label of a case alike."""

    def plant(folder):
        for name in (IMAGE, LABEL):
            array, affine = load(folder, name)
            write(folder / name, *function(array, affine))

    return plant


def description(**entries):
    def plant(folder):
        path = folder / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    return plant


def put(array, index, value):
    array[index] = value
    return array


def moved(affine, **axes):
    affine = affine.copy()
    for axis, mm in axes.items():
        affine["xyz".index(axis), 3] += mm
    return affine


def truncate(folder):
    data = (folder / IMAGE).read_bytes()
    (folder / IMAGE).write_bytes(data[: len(data) // 2])


def flip_one_bit(folder):
    """Decompresses to the right length, but not to what was written."""
    raw = bytearray((folder / IMAGE).read_bytes())
    raw[-6] ^= 1  # in the checksum that ends a gzip file
    (folder / IMAGE).write_bytes(bytes(raw))


def copy(source, target):
    return lambda folder: (folder / target).write_bytes((folder / source).read_bytes())


def swap_labels(folder):
    arrays = {}
    for case, other in (("a_01", "b_01"), ("b_01", "a_01")):
        arrays[other], _ = load(folder, f"labelsTr/{case}.nii.gz")
    for case, array in arrays.items():
        affine = load(folder, f"imagesTr/{case}_0000.nii.gz")[1]
        write(folder / f"labelsTr/{case}.nii.gz", np.roll(array, 5, axis=1), affine)


def near_copy(folder):
    array, affine = load(folder, IMAGE)
    write(
        folder / "imagesTr/c_02_0000.nii.gz", array + np.random.default_rng(0).integers(0, 2, array.shape, "i2"), affine
    )


def second_channel(folder):
    for case in CASES:
        array, affine = load(folder, f"imagesTr/{case}_0000.nii.gz")
        write(folder / f"imagesTr/{case}_0001.nii.gz", array if case == "a_01" else array[::-1].copy(), affine)
    description(channel_names={"0": "T1", "1": "T2"})(folder)


def test_copy(folder):
    (folder / "imagesTs").mkdir()
    copy(IMAGE, "imagesTs/z_0000.nii.gz")(folder)


def ct_offset(folder):
    for case in CASES:
        name = f"imagesTr/{case}_0000.nii.gz"
        array, affine = load(folder, name)
        array[:, :2] = array.min() - 1000
        write(folder / name, array * 2 + (1800 if case == "a_01" else 0), affine)
    array, affine = load(folder, IMAGE)
    write(folder / IMAGE, array - np.int16(np.percentile(array, 1)), affine)
    description(channel_names={"0": "CT"})(folder)


test_copy.__test__ = False  # a plant, not a test

SHEARED = np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
TILT = np.array([[np.cos(0.02), -np.sin(0.02), 0, 0], [np.sin(0.02), np.cos(0.02), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
PLANTS = {
    "no count": (description(numTraining=None), "dataset-json"),
    "background is 1": (description(labels={"background": 1, "left organ": 0}), "dataset-json"),
    "too many channels": (copy(IMAGE, "imagesTr/a_01_0001.nii.gz"), "channel-count"),
    "libraries choose differently": (header(IMAGE, lambda i: i.set_sform(i.affine @ TILT, 2)), "simpleitk-differs"),
    "NaN": (change(IMAGE, lambda a: put(a, (3, 3, 3), np.nan), np.float32), "not-finite"),
    "Inf": (change(IMAGE, lambda a: put(a, (3, 3, 3), np.inf), np.float32), "not-finite"),
    "truncated": (truncate, "unreadable"),
    "wrong checksum": (flip_one_bit, "unreadable"),
    "constant": (change(IMAGE, lambda a: a * 0 + 7), "constant"),
    "times 1000": (change(IMAGE, lambda a: a * 1000, np.float32), "intensity-outlier"),
    "CT without offset": (ct_offset, "hu-offset"),
    "duplicate": (copy(IMAGE, "imagesTr/c_02_0000.nii.gz"), "duplicate-image"),
    "duplicate in test set": (test_copy, "duplicate-image"),
    "near duplicate": (near_copy, "near-duplicate-image"),
    "label of another case": (copy("labelsTr/b_01.nii.gz", LABEL), "duplicate-label"),
    "labels swapped": (swap_labels, "label-implausible"),
    "channel twice": (second_channel, "identical-channels"),
    "label without image": (copy(LABEL, "labelsTr/x.nii.gz"), "label-without-image"),
    "image without label": (lambda folder: (folder / LABEL).unlink(), "image-without-label"),
    "missing channel": (description(channel_names={"0": "T1", "1": "T2"}), "missing-channel"),
    "stray file": (lambda folder: (folder / "imagesTr/a.txt").write_text(""), "stray-file"),
    "wrong count": (description(numTraining=7), "case-count"),
    "stray voxel": (change(LABEL, lambda a: put(a, (0, 0, 0), 1)), "stray-component"),
    "tiny volume": (both(lambda a, m: (a, m @ np.diag([0.3, 0.3, 0.3, 1]))), "tiny-volume"),
    "background only": (change(LABEL, lambda a: a * 0), "no-foreground"),
    "no background": (change(LABEL, lambda a: np.maximum(a, 1)), "no-background"),
    "label never there": (
        description(labels={"background": 0, "left organ": 1, "right organ": 2, "third": 3}),
        "label-never-present",
    ),
    "labels not consecutive": (
        description(labels={"background": 0, "left organ": 1, "right organ": 2, "third": 4}),
        "labels-not-consecutive",
    ),
    "unexpected label": (change(LABEL, lambda a: put(a, (1, 1, 1), 9)), "label-unknown"),
    "negative label": (change(LABEL, lambda a: put(a, (1, 1, 1), -1), np.int16), "label-unknown"),
    "half label": (change(LABEL, lambda a: a * 0.5, np.float32), "label-not-whole"),
    "float label": (change(LABEL, lambda a: a, np.float32), "label-type"),
    "voxel size 0": (header(IMAGE, lambda i: put(i.header["pixdim"], 2, 0)), "voxel-size-invalid"),
    "metres": (both(lambda a, m: (a, m @ np.diag([1e-3, 1e-3, 1e-3, 1]))), "voxel-size-absurd"),
    "unit metre": (header(IMAGE, lambda i: i.header.set_xyzt_units("meter")), "units"),
    "sizes disagree": (header(IMAGE, lambda i: i.set_sform(i.affine @ np.diag([3, 1, 1, 1]), 1)), "forms-disagree"),
    "places disagree": (header(IMAGE, lambda i: i.set_sform(moved(i.affine, z=9), 1)), "forms-moved"),
    "no forms": (header(IMAGE, lambda i: (i.set_sform(None, 0), i.set_qform(None, 0))), "no-form"),
    "sheared": (header(IMAGE, lambda i: i.set_sform(i.affine @ SHEARED, 1)), "simpleitk-refuses"),
    "other orientation": (both(lambda a, m: (a, np.diag([-1, -1, 1, 1]) @ m)), "orientation-differs"),
    "mirrored": (both(lambda a, m: (a[::-1].copy(), m)), "left-right"),
    "origin 50 mm off": (header(LABEL, lambda i: both_forms(i, moved(i.affine, x=50))), "grid-moved"),
    "label flipped": (header(LABEL, lambda i: both_forms(i, i.affine @ np.diag([-1, 1, 1, 1]))), "grid-moved"),
    "slightly off": (header(LABEL, lambda i: both_forms(i, moved(i.affine, x=0.1))), "grid-differs-slightly"),
    "shape": (change(LABEL, lambda a: a[:-1].copy()), "shape-differs"),
    "spacing": (header(LABEL, lambda i: both_forms(i, i.affine @ np.diag([1, 1, 2, 1]))), "grid-moved"),
    "one spacing 9 times": (both(lambda a, m: (a, m @ np.diag([1, 1, 9, 1]))), "voxel-size-outlier"),
    "4D": (change(IMAGE, lambda a: np.stack([a] * 3, axis=-1)), "not-3d"),
}


# What both libraries read as it was meant.
HARMLESS = ("bits and type disagree", "handedness NaN", "magic", "size of header")


@pytest.mark.parametrize("name", [IMAGE, LABEL])
@pytest.mark.parametrize("damage", NIFTI)
def test_damaged_headers_are_findings(clean, tmp_path, damage, name):
    offset, new = NIFTI[damage]
    raw = bytearray(gzip.decompress((clean / name).read_bytes()))
    assert bytes(raw[offset : offset + len(new)]) != new
    raw[offset : offset + len(new)] = new
    (clean / name).write_bytes(gzip.compress(bytes(raw), 1))
    report = check_dataset(clean)
    errors = [finding for finding in report.findings if finding.severity != "note"]
    assert name in {finding.file for finding in errors} or damage in HARMLESS
    assert all("\n" not in finding.value for finding in errors)
    assert len(report.cases) == len(CASES) and sum(bool(case.images) for case in report.cases) >= len(CASES) - 1
    assert "not-checked" not in {finding.check for finding in errors if finding.file == clean.name}
    render_page(report)
    # Cleaning leaves the case out, or can tell what to do about it.
    clean_dataset(clean, ["repairs", "drop-unreadable"], tmp_path / "Dataset043_Clean")
    try:
        clean_dataset(clean, ["repairs"])
    except UserError as error:
        assert "\n" not in str(error) and "drop-unreadable" in str(error)


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ({"channel_names": {"first": "MR"}}, "numbered first; expected 0"),
        ({"channel_names": {"1": "MR"}}, "numbered 1; expected 0"),
        ({"channel_names": {"0": 7}}, "named 7; expected a word"),
        ({"channel_names": {"0": None}}, "named None; expected a word"),
    ],
)
def test_odd_channel_names_are_findings(clean, entries, found):
    description(**entries)(clean)
    assert [finding.check for finding in check_dataset(clean).findings if found in finding.value] == ["dataset-json"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"file_ending": ""}, "file_ending"),
        ({"labels": {"background": 0, "organ": 1.5}}, "not a whole number"),
        ({"labels": {"background": 0, "organ": float("inf")}}, "not a whole number"),
        ({"dataset": {"a_01": []}}, "lists no images of case a_01"),
    ],
)
def test_odd_descriptions_are_one_line(clean, entries, message):
    description(**entries)(clean)
    with pytest.raises(UserError, match=message):
        check_dataset(clean)


def test_empty_label_map_and_unexpected_exceptions_cost_no_other_file(clean, monkeypatch):
    import nnunet_ext.data.inspect_case as module

    (clean / LABEL).write_bytes(b"")
    facts = module._image_facts

    def fail(volume, findings):
        if "b_02" in str(volume.path):
            raise ZeroDivisionError("division\nby zero")
        return facts(volume, findings)

    monkeypatch.setattr(module, "_image_facts", fail)
    report = check_dataset(clean)
    found = {(finding.check, finding.file): finding.value for finding in report.findings}
    assert (
        found["not-checked", "imagesTr/b_02_0000.nii.gz"] == "cannot be checked (ZeroDivisionError: division by zero)"
    )
    assert ("unreadable", LABEL) in found and len(report.cases) == len(CASES)


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_colour_images_hold_the_channels(tmp_path, ending):
    """nnU-Net's own layout for natural images: one file per case, three channels in dataset.json."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "Dataset043_Colours"
    for number in range(5):
        colours = rng.integers(0, 255, (40, 50, 3)).astype(np.uint8)
        labels = np.zeros((40, 50), np.uint8)
        labels[10:20, 15 : 25 + number] = 1
        for kind, array, name in (("imagesTr", colours, f"c{number}_0000"), ("labelsTr", labels, f"c{number}")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            imsave(folder / kind / f"{name}{ending}", array, check_contrast=False)
    facts = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "thing": 1}}
    (folder / "dataset.json").write_text(json.dumps({**facts, "numTraining": 5, "file_ending": ending}))
    assert [(f.check, f.file, f.value) for f in check_dataset(folder).findings] == []
    verify_dataset_integrity(str(folder), num_processes=1)  # nor has nnU-Net anything to say
    # One grey image among them lacks two channels, one with alpha has one too many.
    imsave(folder / "imagesTr" / f"c1_0000{ending}", rng.integers(0, 255, (40, 50)).astype(np.uint8))
    findings = {finding.check: finding for finding in check_dataset(folder).findings}
    assert ("channel-count" if ending == ".bmp" else "missing-channel") in findings
    imsave(folder / "imagesTr" / f"c1_0000{ending}", rng.integers(0, 255, (40, 50, 4)).astype(np.uint8))
    findings = {finding.check: finding for finding in check_dataset(folder).findings}
    if ending != ".bmp":
        assert findings["channel-count"].value == "4 values per pixel in 1 files; dataset.json names 3 channels"


def both_forms(image, affine):
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)


def test_clean_data_yield_nothing(clean):
    report = check_dataset(clean)
    assert report.findings == () and report.errors == 0
    assert [case.name for case in report.cases] == list(CASES)
    label = report.cases[0].label
    assert label is not None and label.component_count == {1: 1, 2: 1}
    assert label.centroid_mm[1][0] < 0 < label.centroid_mm[2][0]


@pytest.mark.parametrize("defect", PLANTS)
def test_planted(clean, defect):
    plant, expected = PLANTS[defect]
    plant(clean)
    report = check_dataset(clean)
    found = [finding for finding in report.findings if finding.check == expected]
    assert found, f"found only {[(f.check, f.file, f.value) for f in report.findings]}"
    assert found[0].value and found[0].remedy
    assert (report.errors > 0) == any(CHECKS[f.check][0] == "error" for f in report.findings)
    if expected in ("not-finite", "unreadable", "constant"):
        assert [f.file for f in found] == [IMAGE]


def test_spacing_files_of_tiff_stacks_belong_there(tmp_path):
    (member,) = (member for member in zoo.MEMBERS if member.name == "TIFF")
    folder = zoo.make(member, tmp_path)
    assert read_layout(folder).findings == ()
    for name in ("imagesTr/other.json", "labelsTr/other.json"):
        (folder / name).write_text("{}")
    assert {finding.check for finding in read_layout(folder).findings} == {"stray-file", "label-without-image"}


def test_sources_of_trouble_that_nnunet_never_sees(clean):
    """The two reading libraries really disagree on these, so that comparing them is not idle."""
    truncate(clean)
    array, affine = load(clean, "imagesTr/b_01_0000.nii.gz")
    write(clean / "imagesTr/b_01_0000.nii.gz", put(array.astype(np.float32), (3, 3, 3), np.nan), affine)
    assert np.isfinite(sitk.GetArrayFromImage(sitk.ReadImage(str(clean / "imagesTr/b_01_0000.nii.gz")))).all()
    with pytest.raises(EOFError):
        gzip.decompress((clean / IMAGE).read_bytes())
    assert {f.check for f in check_dataset(clean).findings} >= {"not-finite", "unreadable"}


@pytest.mark.parametrize("ending", [".mha", ".png", ".tif"])
def test_other_formats(tmp_path, ending):
    folder = make(tmp_path / "nifti")
    flat = ending != ".mha"
    for path in sorted(folder.glob("*/*.nii.gz")):
        image = sitk.ReadImage(str(path))
        if flat:
            image = sitk.Cast(image[:, :, 10] + 200, sitk.sitkUInt16) if "images" in str(path) else image[:, :, 10]
        sitk.WriteImage(image, str(path).removesuffix(".nii.gz") + ending)
        path.unlink()
    description(file_ending=ending)(folder)
    assert check_dataset(folder).findings == ()
    broken = folder / f"imagesTr/a_01_0000{ending}"
    broken.write_bytes(broken.read_bytes()[:100])
    copy(f"imagesTr/b_01_0000{ending}", f"imagesTr/c_01_0000{ending}")(folder)
    assert {"unreadable", "duplicate-image"} <= {f.check for f in check_dataset(folder).findings}


def test_patients_stay_together(clean):
    report = check_dataset(clean, patients=r"^(\w)_", folds=3)
    assert [f.check for f in report.findings] == ["patients-share-folds"] and report.findings[0].file == clean.name
    folds = report.folds
    assert folds is not None and sorted(case for fold in folds for case in fold["val"]) == sorted(CASES)
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(CASES)
        assert not {case[0] for case in fold["train"]} & {case[0] for case in fold["val"]}
    sizes = [len(f["val"]) for f in grouped_folds({str(i): ["x"] * (i % 4 + 1) for i in range(40)})]
    assert max(sizes) - min(sizes) <= 1
    with pytest.raises(UserError, match="3 patients cannot fill 5 folds"):
        check_dataset(clean, patients=r"^(\w)_")
    with pytest.raises(ValueError, match="c_01"):
        patient_groups(["a_01", "c_01"], "(a)")


def test_many_processes_find_the_same(clean):
    truncate(clean)
    assert check_dataset(clean, processes=2).findings == check_dataset(clean).findings


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.sources = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "nnunet_ext", "data", "check", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done


def test_command(clean, tmp_path):
    page, splits = tmp_path / "report.html", tmp_path / "splits_final.json"
    options = ("-n", 1, "--patients", r"^(\w)_", "--folds", 3)
    done = command(clean, "--json", "-o", page, "--splits", splits, *options)
    assert done.returncode == 0, done.stderr  # a warning is no error
    facts = json.loads(done.stdout)
    assert facts["counts"] == {"error": 0, "warning": 1, "note": 0} and len(facts["cases"]) == len(CASES)
    assert len(json.loads(splits.read_text())) == 3
    html = Page()
    html.feed(page.read_text())
    assert html.tags.count("img") == len(CASES) and all(s.startswith("data:image/png;base64,") for s in html.sources)
    assert not {"script", "link", "iframe"} & set(html.tags)
    truncate(clean)
    done = command(clean, "-n", 1)
    assert done.returncode == 1 and f"  {IMAGE}: " in done.stdout and "error: unreadable (1)" in done.stdout
    assert command(clean, "--splits", splits).returncode == 2
    done = command(tmp_path / "nowhere")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "nowhere" in done.stderr


def test_everything_is_documented():
    from nnunet_ext.data.clean import NAMES
    from nnunet_ext.data.layouts_public import SOURCES

    text = (REPOSITORY / "docs" / "data.md").read_text()
    for name in (*CHECKS, *NAMES, *SOURCES):
        assert f"`{name}`" in text, name
    planted = {expected for _, expected in PLANTS.values()}
    assert planted | {"patients-share-folds", "not-checked"} == set(CHECKS)
