"""`medseg predict` on files with odd headers: the mask lies exactly where the image does."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.cli import app
from medseg.data import make_phantom
from tests.factories import make_tiny_bundle

GEOMETRY = (
    "dim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units",
)  # fmt: skip
ROTATION = nib.eulerangles.euler2mat(0.2, -0.3, 0.1)
MATRICES = {
    "oblique": ROTATION @ np.diag([0.9, 1.1, 1.4]),
    "las": np.diag([-1.0, 1.0, 1.0]),
    "negative_determinant": ROTATION @ np.diag([1.0, -1.0, 1.2]),
    "permuted": np.array([[0, 0, 1.2], [0.9, 0, 0], [0, 1.0, 0]]),
    "sheared": np.array([[1.0, 0.25, 0], [0, 1.0, 0.1], [0, 0, 1.3]]),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def _affine(matrix: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, (-21.5, 8.25, 3.0)
    return affine


def _write_odd_files(folder: Path) -> dict[str, np.ndarray]:
    """Write one file a kind; return the array that its voxels mean."""
    image, _ = make_phantom(shape=(18, 20, 16), seed=3, noise=0.02)
    arrays = dict.fromkeys(MATRICES, image)
    for name, matrix in MATRICES.items():
        nifti = nib.Nifti1Image(image, None)
        nifti.header.set_sform(_affine(matrix), 2)
        if name != "sheared":
            nifti.header.set_qform(_affine(matrix), 1)
        nib.save(nifti, folder / f"{name}.nii.gz")

    apart = nib.Nifti1Image(image, None)
    apart.header.set_sform(_affine(np.eye(3)), 1)
    apart.header.set_qform(_affine(ROTATION), 1)
    nib.save(apart, folder / "forms_apart.nii.gz")

    scaled = nib.Nifti1Image(image, _affine(np.eye(3)))
    scaled.set_data_dtype(np.int16)  # nibabel then stores integers with a slope and an intercept
    nib.save(scaled, folder / "scaled.nii.gz")

    nib.save(nib.Nifti1Image(image[..., None], _affine(np.eye(3))), folder / "single_volume_4d.nii.gz")
    nib.save(nib.Nifti1Image(image[:, :, 8], _affine(np.eye(3))), folder / "flat_2d.nii.gz")
    nib.save(nib.Nifti1Image(image[:, :, 8:9], _affine(np.diag([1, 1, 5.0]))), folder / "single_slice.nii.gz")
    holes = image.copy()
    holes[0, :3, 0] = [np.nan, np.inf, -np.inf]
    nib.save(nib.Nifti1Image(holes, _affine(np.eye(3))), folder / "holes.nii.gz")
    flat = {"flat_2d": image[:, :, 8], "single_slice": image[:, :, 8:9], "single_volume_4d": image[..., None]}
    return {**arrays, **flat, "forms_apart": image, "scaled": image, "holes": image}


def test_every_odd_file_gets_a_mask_on_its_own_grid(bundle, tmp_path):
    (tmp_path / "scans").mkdir()
    arrays = _write_odd_files(tmp_path / "scans")
    result = CliRunner().invoke(
        app, ["predict", str(tmp_path / "scans"), "-o", str(tmp_path / "out"), "--bundle", str(bundle), "--json"]
    )
    assert result.exit_code == 0, result.stderr
    notes = {line["case"]: " ".join(line["notes"]) for line in map(json.loads, result.stdout.splitlines())}
    assert set(notes) == set(arrays)
    for name, image in arrays.items():
        source, mask = (nib.load(tmp_path / p) for p in (f"scans/{name}.nii.gz", f"out/{name}_seg.nii.gz"))
        for field in GEOMETRY:
            assert np.array_equal(mask.header[field], source.header[field]), (name, field)
        labels = np.asarray(mask.dataobj)
        assert labels.dtype == np.uint8
        # The phantom's structures are brighter than its background: the mask must lie on them.
        assert image[labels > 0].mean() > image[labels == 0].mean() + 20, name
    assert "qform and sform disagree" in notes["forms_apart"]
    assert "3 of 5760 voxels are NaN or infinite" in notes["holes"]


def test_real_odd_files_are_segmented_or_named(bundle, tmp_path, shared_data):
    refused = {"rgb24", "rgba32", "dmri_4d", "dmri_4d_float_8mm", "singleton_z_4d"}
    # A spacing of 1 mm would blow these up to what no small network is meant for.
    left_out = {"voxels_10mm_float64", "voxels_5x5x37mm_2slices", "neg_qfac_oblique_thick_slices"}
    files = [p for p in (shared_data / "robustness").glob("*.nii.gz") if p.name.split(".")[0] not in left_out]
    result = CliRunner().invoke(
        app,
        ["predict", *map(str, files), "-o", str(tmp_path), "--bundle", str(bundle), "--json", "--roi-size", "64,64,64"],
    )
    assert result.exit_code == 1
    lines = {line["case"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert {case for case, line in lines.items() if line["status"] == "failed"} == refused
    assert "Traceback" not in result.stderr
    for path in files:
        case = path.name.removesuffix(".nii.gz")
        if case in refused:
            assert path.name in lines[case]["reason"]
            continue
        source, mask = nib.load(path), nib.load(tmp_path / f"{case}_seg.nii.gz")
        assert mask.shape == source.shape
        assert np.array_equal(mask.affine, source.affine)
