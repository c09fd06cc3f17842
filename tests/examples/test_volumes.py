"""Volumes as clinics have them, NIfTI and DICOM, through examples/volume_features.py; the slices are real."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from i3dconvert import export_onnx, inflate
from tests.examples.test_examples import EXAMPLES, run

BRAIN = Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii"
STEP = 5.0
SLICES = 6


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / "volume_features.py"))


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A CT series: one real slice, further and further to the right, its files in no order."""
    folder = tmp_path / "series"
    folder.mkdir()
    for number in range(SLICES):
        one = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        one.ImagePositionPatient = [-40.0, -42.0, 100.0 + STEP * number]
        one.PixelData = np.roll(one.pixel_array, 8 * number, axis=1).tobytes()
        one.save_as(folder / f"{(number * 5) % 7}.dcm")
    return folder


def test_a_series_is_in_hounsfield_units_and_millimetres(series: Path, example: dict[str, Any]) -> None:
    volume = example["read"](series)
    one = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    assert volume.shape == (128, 128, SLICES)
    units = np.asarray(volume.dataobj)
    for number in range(SLICES):
        expected = np.roll(one.pixel_array, 8 * number, axis=1).T + float(one.RescaleIntercept)
        assert np.array_equal(units[:, :, number], expected)
    row, column = (float(value) for value in one.PixelSpacing)
    corner, far = (volume.affine @ [*index, 1] for index in ((0, 0, 0), (1, 2, 3)))
    assert np.allclose(corner[:3], [40, 42, 100])  # DICOM's left and back are negative here
    assert np.allclose(far[:3] - corner[:3], [-column, -2 * row, 3 * STEP])
    single = example["read"](Path(str(get_testdata_file("CT_small.dcm"))))
    assert (single.shape, abs(single.affine[2, 2])) == ((128, 128, 1), float(one.SliceThickness))


def test_prepared_it_is_upright_windowed_and_in_the_middle(series: Path, example: dict[str, Any]) -> None:
    volume = example["read"](series)
    clip = example["prepare"](volume, 96, 24)
    assert (clip.shape, clip.dtype) == ((1, 3, 24, 96, 96), np.float32)
    assert np.array_equal(clip[:, 0], clip[:, 2])
    assert clip.min() == 0
    assert clip.max() <= 1
    depth = round((SLICES - 1) * STEP / 3) + 1
    held = np.flatnonzero(clip[0, 0].max(axis=(1, 2)) > 0)
    assert (len(held), held[0]) == (depth, (24 - depth) // 2)
    turned = nibabel.Nifti1Image(np.asarray(volume.dataobj)[::-1], volume.affine @ np.diag([-1, 1, 1, 1]))
    turned.affine[:3, 3] = (volume.affine @ [volume.shape[0] - 1, 0, 0, 1])[:3]
    again = nibabel.Nifti1Image(np.asarray(turned.dataobj), turned.affine)
    assert np.allclose(example["prepare"](again, 96, 24), clip, atol=1e-4)
    thin = example["prepare"](volume, 32, 4)
    assert np.allclose(thin, clip[:, :, 10:14, 32:64, 32:64], atol=1e-5)


@pytest.mark.slow
def test_features_and_their_picture(series: Path, tmp_path: Path) -> None:
    export_onnx(inflate("resnet18", weights="random", head="none"), tmp_path / "features.onnx")
    where = ("--depth", "16", "--picture", str(tmp_path / "slices.png"), "--save", str(tmp_path / "features.npy"))
    said = run("volume_features.py", str(tmp_path / "features.onnx"), str(BRAIN), str(series), *where)
    assert "features (2, 512)" in said
    features = np.load(tmp_path / "features.npy")
    cosine = features[0] @ features[1] / np.linalg.norm(features[0]) / np.linalg.norm(features[1])
    assert f"cosine {cosine:.3f}" in said
    assert cosine < 0.999
    with Image.open(tmp_path / "slices.png") as picture:
        seen = np.asarray(picture.convert("L"))
    assert seen.std() > 10
