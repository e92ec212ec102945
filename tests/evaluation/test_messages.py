"""What a user sees on the terminal: our lines and nobody else's, each of them one line."""

from __future__ import annotations

import os

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from helpers.toy_label_maps import case, save

from nnunet_ext.cli.main import main
from nnunet_ext.errors import UserError, one_line
from nnunet_ext.evaluation import read_label_map

HEADER_FIELDS = {"sizeof_hdr": 0, "pixdim": 83, "vox_offset": 108}  # bytes of a NIfTI header that nibabel mends


def test_line_breaks_and_what_does_not_print_are_escaped():
    assert one_line("a\nb\x1b[31m\udcff ä") == r"a\nb\x1b[31m\udcff ä"
    assert str(UserError("case a\r\nb")) == r"case a\r\nb"


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb"])
def test_a_name_with_a_line_break_is_one_line(dataset, capfd, name):
    save(dataset / "references" / f"{name}.nii.gz", case(0))
    arguments = ["evaluate", "-r", str(dataset / "references"), "-p", str(dataset / "predictions"), "-q", "-n1"]
    assert main(arguments) == 1
    (line,) = capfd.readouterr().err.removesuffix("\n").split("\n")
    assert line.isprintable() and one_line(name) in line
    assert main([*arguments, "--allow-missing"]) == 0
    (line,) = capfd.readouterr().err.removesuffix("\n").split("\n")
    assert line.isprintable() and one_line(name) in line


def test_a_name_that_no_table_can_hold_is_refused(dataset, capfd):
    save(dataset / "references" / "b.nii.gz", case(0))
    os.rename(dataset / "references" / "b.nii.gz", os.fsencode(dataset / "references") + b"/\xff.nii.gz")
    folders = ["-r", str(dataset / "references"), "-p", str(dataset / "predictions")]
    assert main(["evaluate", *folders, "-q", "-n1", "--allow-missing"]) == 1
    assert r"\udcff.nii.gz, whose name is not UTF-8" in capfd.readouterr().err


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


def flip(path):
    data = bytearray(path.read_bytes())
    data[20] ^= 0xFF
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".png", ".tif"])
@pytest.mark.parametrize("damage", [cut, flip])
def test_the_libraries_of_the_formats_are_silent(tmp_path, capfd, ending, damage):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(case(0)[3] if ending in (".png", ".tif") else case(0)), str(path))
    damage(path)
    try:
        read_label_map(path)
    except UserError:
        pass
    os.write(2, b"and what comes after is heard")
    assert capfd.readouterr() == ("", "and what comes after is heard")


@pytest.mark.parametrize("place", HEADER_FIELDS.values(), ids=HEADER_FIELDS)
def test_nibabel_is_silent(tmp_path, capfd, caplog, place):
    path = tmp_path / "a.nii"
    save(path, case(0))
    data = bytearray(path.read_bytes())
    data[place] ^= 0x80
    path.write_bytes(bytes(data))
    try:
        read_label_map(path)
    except UserError:
        pass
    assert capfd.readouterr() == ("", "") and caplog.records == []  # its handler writes to stderr
    nibabel.imageglobals.logger.warning("what comes after is heard")
    assert len(caplog.records) == 1


def test_an_origin_that_is_no_number_is_refused(tmp_path):
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[0, 3] = np.nan
    image = nibabel.Nifti1Image(case(0).T, affine)
    image.set_sform(affine, 1)
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(UserError, match="origin or direction that is no number"):
        read_label_map(tmp_path / "a.nii")
