"""Images are read whole or refused, written whole or not at all, and never take more memory than their files hold."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunet_ext import image_files
from nnunet_ext.data.volumes import read_volume
from nnunet_ext.diffusion.samples_file import write_samples
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.images import read_label_map
from nnunet_ext.image_files import check_whole, check_written, read_image, read_nifti, whole_numbers, write_image
from nnunet_ext.images import read_image as read_prompted

VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".tif", ".tiff")
PICTURES = (".png", ".bmp")


def array_for(ending: str, side: int = 32) -> np.ndarray:
    shape = (6, side, side) if ending in VOLUMES else (side, side)
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)


@pytest.mark.parametrize("ending", VOLUMES + PICTURES)
def test_what_is_written_is_read(tmp_path, ending):
    array = array_for(ending)
    write_image(sitk.GetImageFromArray(array), tmp_path / f"a{ending}")
    assert (sitk.GetArrayFromImage(read_image(tmp_path / f"a{ending}")) == array).all()
    assert [path.name for path in tmp_path.iterdir()] == [f"a{ending}"]


@pytest.mark.parametrize("shape", [(6, 8, 9), (3, 8, 9), (6, 8, 4), (1, 8, 9)])
def test_a_tiff_stack_has_its_spacing_beside_it(tmp_path, shape):
    """As nnU-Net's reader keeps it; three or four slices or columns are no colours."""
    array, path = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8), tmp_path / "a_0000.tif"
    Tiff3DIO().write_seg(array, str(tmp_path / "a.tif"), {"spacing": [2.0, 0.5, 0.25]})
    check_written(tmp_path / "a.tif", array.size, tmp_path / "a.tif")
    (tmp_path / "a.tif").rename(path)
    image = read_image(path)
    assert (sitk.GetArrayFromImage(image) == array).all() and image.GetSpacing() == (0.25, 0.5, 2.0)
    assert read_label_map(path).spacing_mm == (2.0, 0.5, 0.25)
    write_image(image, tmp_path / "b.tif")
    assert (sitk.GetArrayFromImage(read_image(tmp_path / "b.tif")) == array).all()
    assert (tmp_path / "b.json").read_text().split() == '{ "spacing": [ 2.0, 0.5, 0.25 ] }'.split()
    for wrong in ("[]", '{"spacing": [1, 1]}', '{"spacing": [1, 0, 1]}', '{"spacing": "1"}'):
        (tmp_path / "a.json").write_text(wrong)
        with pytest.raises(UserError, match=r"a\.json beside a_0000\.tif must hold"):
            read_image(path)


@pytest.mark.parametrize("ending", VOLUMES + PICTURES)
def test_a_file_cut_short_anywhere_is_refused(tmp_path, ending):
    path, array = tmp_path / f"a{ending}", array_for(ending)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    whole = path.read_bytes() if ending != ".mhd" else (tmp_path / "a.raw").read_bytes()
    target = path if ending != ".mhd" else tmp_path / "a.raw"
    refused = 0
    for length in [0, 1, 100, *(len(whole) * part // 7 for part in range(1, 7)), len(whole) - 10, len(whole) - 1]:
        target.write_bytes(whole[:length])
        try:
            # A last byte without meaning may be missing, a voxel may not.
            assert (sitk.GetArrayFromImage(read_image(path)) == array).all(), length
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused >= 9


@pytest.mark.parametrize("read", [read_volume, read_label_map, read_prompted, read_image])
@pytest.mark.parametrize("ending", [".tif", ".nii", ".nii.gz"])
def test_every_reader_refuses_missing_slices(tmp_path, read, ending):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(array_for(ending)), str(path))
    read(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=r"damaged or cut short \("):
        read(path)


@pytest.mark.parametrize("ending", VOLUMES + PICTURES)
def test_a_full_disk_keeps_the_old_file(full_disk, ending):
    path = full_disk / f"a{ending}"
    path.write_text("old")
    with pytest.raises(UserError, match=r"cannot write .*/a\."):
        write_image(sitk.GetImageFromArray(array_for(ending, side=512)), path)
    assert [entry.name for entry in full_disk.iterdir()] == [path.name] and path.read_text() == "old"


@pytest.mark.parametrize("ending", VOLUMES + PICTURES)
def test_what_was_written_in_part_never_appears(tmp_path, monkeypatch, ending):
    write = sitk.WriteImage

    def write_a_part(image, path, **options):
        write(image, path, **options)
        os.truncate(path, os.path.getsize(path) - 50)

    monkeypatch.setattr(image_files.sitk, "WriteImage", write_a_part)
    with pytest.raises(UserError, match=r"cannot write .*/a\.[a-z.]+: what was written is not whole"):
        write_image(sitk.GetImageFromArray(array_for(ending)), tmp_path / f"a{ending}")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_old_samples(full_disk):
    like = sitk.GetImageFromArray(np.zeros((8, 256, 256), np.uint8))
    write_samples(full_disk, "a", np.zeros((2, 8, 256, 256), np.uint8), like)
    before = {path: path.read_bytes() for path in (full_disk / "a").iterdir()}
    noise = np.random.default_rng(0).integers(0, 200, (2, 8, 256, 256))
    with pytest.raises(UserError, match=r"cannot write .*sample_00.nii.gz"):
        write_samples(full_disk, "a", noise, like)
    assert {path: path.read_bytes() for path in (full_disk / "a").iterdir()} == before
    write_samples(full_disk, "a", np.ones((1, 8, 256, 256), np.uint8), like)
    assert sorted(path.name for path in full_disk.rglob("*")) == ["a", "sample_00.nii.gz", "samples.json"]


def nifti(shape: tuple[int, ...], content: bytes) -> bytes:
    """A header of int16 voxels and whatever comes after it."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<4f", header, 76, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    return bytes(header) + content


@pytest.mark.parametrize("read", [read_volume, read_label_map, read_nifti, check_whole, read_prompted])
@pytest.mark.parametrize(
    ("shape", "megabytes", "message"),
    [
        ((4, 4, 4), 300, "holds more than the 480 bytes its header declares"),
        ((30000, 30000, 30000), 0, "cannot hold|are there"),
        ((30000, 30000, 30000), 300, "cannot hold|are there"),
        ((-4, 4, 4), 0, "expected at least one voxel"),
        ((4, 0, 4), 0, "expected at least one voxel"),
    ],
)
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_memory_is_bounded(tmp_path, read, shape, megabytes, message, ending):
    if ending == ".nii" and shape == (4, 4, 4):
        return  # bytes beyond those declared are no danger when they lie there unpacked
    path = tmp_path / f"a{ending}"
    if ending == ".nii":
        path.write_bytes(nifti(shape, bytes(1000)))
    else:
        path.write_bytes(gzip.compress(nifti(shape, bytes(megabytes << 20) + bytes(128)), 1))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_more_than_the_machine_has_is_refused_before_it_is_taken(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(nifti((100, 100, 100), bytes(2_000_000))))
    assert read_nifti(path).array.shape == (100, 100, 100)
    monkeypatch.setattr(image_files, "available_memory_bytes", lambda: 10**6)
    with pytest.raises(UserError, match=r"declares 0.00186 GiB of voxels and 0.000931 GiB of memory are free"):
        read_nifti(path)


def test_members_and_padding_are_read(tmp_path):
    path, data = tmp_path / "a.nii.gz", nifti((4, 4, 4), bytes(range(128)))
    path.write_bytes(gzip.compress(data[:200]) + gzip.compress(data[200:]) + bytes(600))
    assert read_nifti(path).array.tobytes(order="F") == bytes(range(128))
    path.write_bytes(b"")
    with pytest.raises(UserError, match="damaged or cut short"):
        check_whole(path)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_whole_numbers(value):
    assert whole_numbers("a", np.array([1.0, 2.0])).dtype.kind == "i"
    with pytest.raises(UserError, match=f"a holds the value {value}"):
        whole_numbers("a", np.array([1.0, value]))
