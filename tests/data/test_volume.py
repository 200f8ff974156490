"""Reading and writing volumes: what is odd is seen, and a mask lies exactly on its input."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.data import (
    VolumeError,
    check_same_grid,
    read_channels,
    read_image,
    read_mask,
    write_mask,
)

SHAPE = (7, 6, 5)
GEOMETRY = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units", "pixdim", "descrip", "dim",
)  # fmt: skip


def _rotation(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def _affine(matrix: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = (-11.5, 3.25, 40.0)
    return affine


AFFINES = {
    "RAS": _affine(np.diag([1.0, 1.0, 1.0])),
    "LPS": _affine(np.diag([-1.0, -1.0, 1.0])),
    "LAS": _affine(np.diag([-0.8, 0.8, 2.0])),
    "anisotropic": _affine(np.diag([0.5, 0.5, 6.0])),
    "oblique": _affine(_rotation(17) @ np.diag([0.9, 1.1, 2.0])),
    "permuted": _affine(np.array([[0, 0, 1.0], [1.0, 0, 0], [0, 1.0, 0]])),
    "negative determinant": _affine(_rotation(-30) @ np.diag([1.0, 1.0, -1.5])),
    "sheared": _affine(np.array([[1.0, 0.3, 0], [0, 1.0, 0.1], [0, 0, 2.0]])),
    "float noise": _affine(np.diag([1.000001, 0.999999, 1.0])),
}


def _save(
    path: Path, array: np.ndarray, affine: np.ndarray = AFFINES["RAS"], *, sform: int = 1, qform: int = 1
) -> Path:
    image = nib.Nifti1Image(array, affine)
    image.header["descrip"] = b"made for a test"
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, sform)
    if affine is not AFFINES["sheared"]:  # a quaternion cannot hold a shear
        image.set_qform(affine, qform)
    nib.save(image, path)
    return path


@pytest.fixture
def image_array() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("name", AFFINES)
def test_mask_has_the_geometry_of_its_input_bit_for_bit(tmp_path, image_array, name, ending):
    source = _save(tmp_path / f"in{ending}", image_array, AFFINES[name], sform=2, qform=0 if name == "sheared" else 3)
    volume = read_image(source)
    labels = (image_array > 0).astype(np.uint8)
    written = nib.load(write_mask(tmp_path / f"out{ending}", labels, volume))
    original = nib.load(source)
    assert np.array_equal(written.affine, original.affine)
    for field in GEOMETRY:
        assert np.array_equal(written.header[field], original.header[field], equal_nan=field == "pixdim"), field
    assert np.array_equal(np.asarray(written.dataobj), labels)
    assert written.get_data_dtype() == np.uint8
    assert written.header.get_slope_inter() in ((None, None), (1.0, 0.0))


@settings(deadline=None, max_examples=25)
@given(
    matrix=st.lists(st.floats(-3, 3).map(lambda v: round(v, 3)), min_size=9, max_size=9),
    codes=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([0, 1, 3])),
)
def test_any_invertible_affine_round_trips(tmp_path_factory, matrix, codes):
    affine = _affine(np.array(matrix).reshape(3, 3))
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() < 0.1 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 0.05:
        return
    folder = tmp_path_factory.mktemp("affine")
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), None)
    image.header.set_sform(affine, codes[0])
    image.header.set_qform(np.eye(4), codes[1])
    nib.save(image, folder / "in.nii")
    volume = read_image(folder / "in.nii")
    out = nib.load(write_mask(folder / "out.nii", np.ones((2, 3, 4), np.uint8), volume))
    assert np.array_equal(out.header.get_sform(), image.header.get_sform())
    assert (int(out.header["sform_code"]), int(out.header["qform_code"])) == codes


@pytest.mark.parametrize("shape", [(7, 6), (7, 6, 1), (7, 6, 5, 1)])
def test_flat_and_single_volume_files_keep_their_shape(tmp_path, shape):
    source = _save(tmp_path / "in.nii.gz", np.random.default_rng(1).normal(size=shape).astype(np.float32))
    volume = read_image(source)
    assert volume.array.ndim == 3
    out = nib.load(write_mask(tmp_path / "out.nii.gz", np.ones(volume.array.shape, np.uint8), volume))
    assert out.shape == shape


def test_scale_factor_is_applied_to_the_image_and_not_to_the_mask(tmp_path):
    image = nib.Nifti1Image(np.full(SHAPE, 3, dtype=np.int16), np.eye(4))
    image.header.set_slope_inter(2.5, -1.0)
    nib.save(image, tmp_path / "in.nii")
    stored = nib.load(tmp_path / "in.nii")
    stored.header.set_slope_inter(2.5, -1.0)
    content = bytearray((tmp_path / "in.nii").read_bytes())
    content[112:120] = np.array([2.5, -1.0], dtype="<f4").tobytes()
    content[352:] = np.full(SHAPE, 3, dtype="<i2").tobytes()
    (tmp_path / "in.nii").write_bytes(bytes(content))
    volume = read_image(tmp_path / "in.nii")
    assert np.all(volume.array == 6.5)
    out = nib.load(write_mask(tmp_path / "out.nii", np.full(SHAPE, 2, np.uint8), volume))
    assert np.all(np.asarray(out.dataobj) == 2)


def test_nan_and_inf_take_the_smallest_finite_value_and_are_counted(tmp_path, image_array):
    image_array[0, 0, :3] = [np.nan, np.inf, -np.inf]
    volume = read_image(_save(tmp_path / "in.nii.gz", image_array))
    assert np.isfinite(volume.array).all()
    assert volume.array[0, 0, 0] == np.min(image_array[np.isfinite(image_array)])
    assert any("3 of 210 voxels are NaN or infinite" in n for n in volume.notes)


def test_all_nan_is_refused(tmp_path):
    with pytest.raises(VolumeError, match="no voxel has a finite value"):
        read_image(_save(tmp_path / "in.nii", np.full(SHAPE, np.nan, np.float32)))


def test_disagreeing_qform_and_sform_use_the_sform_with_a_note(tmp_path, image_array):
    image = nib.Nifti1Image(image_array, np.eye(4))
    image.set_sform(_affine(np.diag([1.0, 1.0, 1.0])), 1)
    image.set_qform(np.eye(4), 1)
    nib.save(image, tmp_path / "in.nii")
    volume = read_image(tmp_path / "in.nii")
    assert np.array_equal(volume.affine, image.get_sform())
    assert any("qform and sform disagree" in n for n in volume.notes)


def test_units_other_than_millimetres_are_converted_for_the_network_only(tmp_path, image_array):
    image = nib.Nifti1Image(image_array, np.diag([500.0, 500.0, 500.0, 1.0]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "in.nii")
    volume = read_image(tmp_path / "in.nii")
    assert volume.spacing == pytest.approx((0.5, 0.5, 0.5))
    out = nib.load(write_mask(tmp_path / "out.nii", np.ones(SHAPE, np.uint8), volume))
    assert np.array_equal(out.affine, image.affine)
    assert out.header.get_xyzt_units()[0] == "micron"


def _truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flipped(content: bytes) -> bytes:
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 0x10
    return bytes(damaged)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (_truncated, "damaged or cut off"),
        (_flipped, "damaged"),
        (lambda _: b"", "not a NIfTI file"),
        (lambda _: b"P5 not an image at all", "not a NIfTI file"),
        (lambda _: gzip.compress(b"x" * 2000), "not a NIfTI file"),
        (lambda c: gzip.compress(gzip.decompress(c)[:-10]), "header promises"),
        (lambda c: gzip.compress(gzip.decompress(c) + b"0" * 1000), "header promises"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, image_array, damage, match):
    path = _save(tmp_path / "scan.nii.gz", image_array)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(VolumeError, match=match) as caught:
        read_image(path)
    assert "scan.nii.gz" in str(caught.value)


@pytest.mark.parametrize("cut", [0, 10])
def test_long_header_extensions_are_no_surplus(tmp_path, image_array, cut):
    """Label names in XML, or a scanner's notes, take kilobytes between header and voxels."""
    path = _save(tmp_path / "plain.nii", image_array)
    image = nib.load(path)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 20000))
    nib.save(image, path := tmp_path / "noted.nii")
    path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
    if cut:
        with pytest.raises(VolumeError, match="header promises"):
            read_image(path)
    else:
        assert np.array_equal(read_image(path).array, image_array)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(VolumeError, match=r"none\.nii: no such file"):
        read_image(tmp_path / "none.nii")


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_header_with_random_bytes_is_read_or_refused_but_never_crashes(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("fuzz")
    rng = np.random.default_rng(seed)
    path = _save(folder / "in.nii", np.arange(210, dtype=np.int16).reshape(SHAPE))
    content = bytearray(path.read_bytes())
    for position in rng.integers(0, 352, size=rng.integers(1, 12)):
        content[position] = rng.integers(0, 256)
    path.write_bytes(bytes(content))
    try:
        volume = read_image(path)
    except VolumeError as error:
        assert "in.nii" in str(error)  # noqa: PT017 - both outcomes are right, each is checked
    else:
        assert np.isfinite(volume.array).all()
        assert np.isfinite(volume.affine).all()


def test_several_volumes_are_refused_unless_they_are_channels(tmp_path):
    path = _save(tmp_path / "in.nii", np.random.default_rng(2).normal(size=(*SHAPE, 3)).astype(np.float32))
    with pytest.raises(VolumeError, match=r"3 volumes; expected 1: extract"):
        read_image(path)
    channels = read_channels(path, 3)
    assert [c.array.shape for c in channels] == [SHAPE] * 3
    assert channels[0].file_shape == SHAPE


def test_colour_is_refused(tmp_path):
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "in.nii")
    with pytest.raises(VolumeError, match="holds colour voxels"):
        read_image(tmp_path / "in.nii")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_read_mask_gives_integers_whatever_the_file_stores(tmp_path, dtype):
    labels = np.zeros(SHAPE, dtype)
    labels[2:4] = 3
    mask = read_mask(_save(tmp_path / "m.nii.gz", labels))
    assert mask.array.dtype == np.uint8
    assert np.array_equal(mask.array, labels)


def test_read_mask_refuses_what_is_no_mask(tmp_path, image_array):
    with pytest.raises(VolumeError, match="not whole numbers"):
        read_mask(_save(tmp_path / "m.nii", image_array))


def test_grids_are_compared_with_a_tolerance(tmp_path, image_array):
    first = read_image(_save(tmp_path / "a.nii", image_array))
    near = AFFINES["RAS"].copy()
    near[0, 3] += 1e-5
    check_same_grid(first, read_image(_save(tmp_path / "b.nii", image_array, near)))
    far = AFFINES["RAS"].copy()
    far[0, 3] += 0.5
    with pytest.raises(ValueError, match=r"0\.5 mm away"):
        check_same_grid(first, read_image(_save(tmp_path / "c.nii", image_array, far)))
    with pytest.raises(ValueError, match="has shape"):
        check_same_grid(first, read_image(_save(tmp_path / "d.nii", image_array[:-1])))


def test_real_odd_files_round_trip_or_are_refused(tmp_path, shared_data):
    refused = {"rgb24", "rgba32", "dmri_4d", "dmri_4d_float_8mm", "singleton_z_4d"}
    files = sorted((shared_data / "robustness").glob("*.nii.gz"))
    assert files
    for path in files:
        name = path.name.removesuffix(".nii.gz")
        if name in refused:
            with pytest.raises(VolumeError, match=name):
                read_image(path)
            continue
        volume = read_image(path)
        assert np.isfinite(volume.array).all()
        out = nib.load(write_mask(tmp_path / path.name, np.zeros(volume.array.shape, np.uint8), volume))
        original = nib.load(path)
        assert out.shape == original.shape
        assert np.array_equal(out.affine, original.affine)
