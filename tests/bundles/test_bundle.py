"""Tests of `medseg.bundles.bundle`."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from medseg.bundles import Bundle, list_bundles

METADATA = {
    "version": "1.2.3",
    "name": "Two balls",
    "network_data_format": {
        "inputs": {"image": {"channel_def": {"0": "T1w"}}},
        "outputs": {"pred": {"channel_def": {"10": "shell", "0": "background", "2": "ball"}}},
    },
}


def write_bundle(folder: Path, metadata: object = METADATA) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (folder / "configs" / "inference.json").write_text("{}")
    return folder


def test_a_bundle_is_read_from_its_folder(tmp_path):
    bundle = Bundle.load(write_bundle(tmp_path / "balls_segmentation"))
    assert (bundle.name, bundle.version, bundle.title) == ("balls_segmentation", "1.2.3", "Two balls")
    assert bundle.input_channels == {0: "T1w"}


def test_labels_leave_the_background_out_and_are_in_numerical_order(tmp_path):
    assert list(Bundle.load(write_bundle(tmp_path / "b")).labels.items()) == [(2, "ball"), (10, "shell")]


def test_a_foreground_channel_zero_is_a_label(tmp_path):
    metadata = {"network_data_format": {"outputs": {"pred": {"channel_def": {"0": "lesion"}}}}}
    assert Bundle.load(write_bundle(tmp_path / "b", metadata)).labels == {0: "lesion"}


def test_a_bundle_is_found_by_name_in_the_folders_of_the_environment_variable(tmp_path, monkeypatch):
    path = write_bundle(tmp_path / "first" / "b")
    write_bundle(tmp_path / "second" / "b", METADATA | {"version": "9.0.0"})
    write_bundle(tmp_path / "second" / "c")
    monkeypatch.setenv("MEDSEG_BUNDLES", f"{tmp_path / 'first'}:{tmp_path / 'second'}")
    assert Bundle.load("b").path == path
    assert [b.version for b in list_bundles() if b.name in ("b", "c")] == ["1.2.3", "1.2.3"]


def test_a_folder_in_the_working_directory_goes_before_a_known_name(tmp_path, monkeypatch):
    write_bundle(tmp_path / "known" / "b")
    here = write_bundle(tmp_path / "here" / "b")
    monkeypatch.setenv("MEDSEG_BUNDLES", str(tmp_path / "known"))
    monkeypatch.chdir(tmp_path / "here")
    assert Bundle.load("b").path == here


def test_a_folder_of_that_name_that_is_no_bundle_does_not_hide_a_known_bundle(tmp_path, monkeypatch):
    known = write_bundle(tmp_path / "known" / "b")
    (tmp_path / "b").mkdir()
    monkeypatch.setenv("MEDSEG_BUNDLES", str(tmp_path / "known"))
    monkeypatch.chdir(tmp_path)
    assert Bundle.load("b").path == known


def test_an_unknown_name_lists_the_known_bundles_and_the_searched_folders(tmp_path, monkeypatch):
    write_bundle(tmp_path / "b")
    monkeypatch.setenv("MEDSEG_BUNDLES", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no bundle 'spleen'.*known bundles: .*b.*looked in .*MEDSEG_BUNDLES"):
        Bundle.load("spleen")


def test_a_folder_without_metadata_is_named_as_no_bundle(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a bundle: it has no configs.metadata\.json"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("address", ["http://example.org/b", "https://example.org/b.zip", "s3://bucket/b"])
def test_a_remote_bundle_is_refused_because_a_config_can_execute_code(address):
    with pytest.raises(ValueError, match="config can execute code"):
        Bundle.load(address)


def test_an_empty_name_is_refused():
    with pytest.raises(ValueError, match="name_or_dir is empty"):
        Bundle.load("")


def test_metadata_that_is_not_json_is_named(tmp_path):
    write_bundle(tmp_path / "b")
    (tmp_path / "b" / "configs" / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match=r"metadata\.json is not valid JSON"):
        Bundle.load(tmp_path / "b")


def test_a_broken_bundle_is_left_out_of_the_list(tmp_path, monkeypatch):
    write_bundle(tmp_path / "broken", metadata=[])
    monkeypatch.setenv("MEDSEG_BUNDLES", str(tmp_path))
    assert "broken" not in [b.name for b in list_bundles()]


def test_missing_label_names_say_what_is_expected(tmp_path):
    bundle = Bundle.load(write_bundle(tmp_path / "b", {"version": "1.0.0"}))
    with pytest.raises(ValueError, match=r"outputs\.pred\.channel_def must map channel numbers to names"):
        _ = bundle.labels


def test_the_digest_of_the_weights_is_that_of_the_file(tmp_path):
    bundle = Bundle.load(write_bundle(tmp_path / "b"))
    with pytest.raises(FileNotFoundError, match="has no weights"):
        bundle.weights_sha256()
    bundle.weights_path.parent.mkdir()
    bundle.weights_path.write_bytes(b"weights" * 1000)
    assert bundle.weights_sha256() == hashlib.sha256(b"weights" * 1000).hexdigest()


def test_config_path_lists_what_there_is(tmp_path):
    bundle = Bundle.load(write_bundle(tmp_path / "b"))
    assert bundle.config_path() == tmp_path / "b" / "configs" / "inference.json"
    with pytest.raises(FileNotFoundError, match="has no config 'train'; it has: inference, metadata"):
        bundle.config_path("train")


def test_importing_and_loading_pulls_in_no_heavy_package(tmp_path):
    write_bundle(tmp_path / "b")
    code = (
        "import sys; from medseg.bundles import Bundle, list_bundles; list_bundles(); "
        f"Bundle.load({str(tmp_path / 'b')!r}).labels; "
        "sys.exit(str({'torch', 'monai', 'numpy', 'nibabel'} & set(sys.modules) or ''))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.strip() == "", result.stderr
