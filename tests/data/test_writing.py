"""Masks and probabilities as files: dtypes, names, refusals, and nothing half written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.data import Volume, read_image, write_map, write_mask, write_probabilities


@pytest.fixture
def volume(make_nifti) -> Volume:
    return read_image(make_nifti("in.nii.gz", np.random.default_rng(0).normal(size=(7, 6, 5)).astype(np.float32)))


@pytest.mark.parametrize(("largest", "dtype"), [(0, np.uint8), (255, np.uint8), (256, np.uint16), (70000, np.uint32)])
def test_dtype_is_the_smallest_that_holds_the_labels(tmp_path, volume, largest, dtype):
    labels = np.zeros(volume.array.shape, np.int64)
    labels[0, 0, 0] = largest
    assert nib.load(write_mask(tmp_path / "out.nii", labels, volume)).get_data_dtype() == dtype


def test_the_same_labels_give_the_same_bytes(tmp_path, volume):
    labels = (volume.array > 0).astype(np.uint8)
    first = write_mask(tmp_path / "a.nii.gz", labels, volume).read_bytes()
    os.utime(volume.path, (0, 0))
    assert write_mask(tmp_path / "b.nii.gz", labels, volume).read_bytes() == first


def test_label_names_travel_in_the_header_when_asked_for(tmp_path, volume):
    path = write_mask(tmp_path / "out.nii.gz", np.ones(volume.array.shape, np.uint8), volume, {1: "head & tail"})
    (extension,) = nib.load(path).header.extensions
    assert b'Key="1"' in extension.get_content()
    assert b"head &amp; tail" in extension.get_content()


def test_wrong_labels_are_refused(tmp_path, volume):
    with pytest.raises(ValueError, match="labels has shape"):
        write_mask(tmp_path / "o.nii", np.zeros((2, 2, 2), np.uint8), volume)
    with pytest.raises(ValueError, match="non-negative integers"):
        write_mask(tmp_path / "o.nii", volume.array, volume)
    with pytest.raises(ValueError, match="must end in"):
        write_mask(tmp_path / "o.mha", np.zeros(volume.array.shape, np.uint8), volume)


def test_probabilities_are_stored_with_the_class_last(tmp_path, volume):
    probabilities = np.random.default_rng(3).random((3, *volume.array.shape)).astype(np.float32)
    out = nib.load(write_probabilities(tmp_path / "p.nii.gz", probabilities, volume))
    assert np.array_equal(np.asarray(out.dataobj), np.moveaxis(probabilities, 0, -1))
    assert np.array_equal(out.affine, volume.affine)


def test_a_map_is_stored_as_float32_on_the_grid_of_the_input(tmp_path, volume):
    values = np.random.default_rng(3).random(volume.array.shape)
    out = nib.load(write_map(tmp_path / "m.nii.gz", values, volume))
    assert out.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(out.dataobj), values.astype(np.float32))
    with pytest.raises(ValueError, match="values has shape"):
        write_map(tmp_path / "m.nii.gz", values[1:], volume)


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX feature")
def test_a_full_disk_leaves_no_partial_file(tmp_path, volume):
    """A file-size limit stops the write half way, as a full disk does."""
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from medseg.data import read_image, write_mask\n"
        f"v = read_image({str(volume.path)!r})\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "try:\n"
        f"    write_mask({str(tmp_path / 'out.nii')!r}, np.ones(v.array.shape, np.uint8), v)\n"
        "except OSError as error:\n"
        "    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.nii.gz"]
