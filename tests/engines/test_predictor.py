"""A bundle's network on volumes in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.bundles import check_bundle
from medseg.data import Volume, VolumeError, make_phantom, read_image
from medseg.engines import InsufficientMemoryError, Predictor
from tests.factories import make_tiny_bundle, turn_2d


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def phantom(tmp_path, oblique_affine) -> tuple[Volume, np.ndarray]:
    image, label = make_phantom(shape=(20, 24, 18), spacing=(0.9, 1.1, 1.6), seed=1, noise=0.02)
    nib.save(nib.Nifti1Image(image, oblique_affine), tmp_path / "p.nii.gz")
    return read_image(tmp_path / "p.nii.gz"), label


def _dice(first: np.ndarray, second: np.ndarray, label: int) -> float:
    a, b = first == label, second == label
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_an_oblique_volume_is_segmented_on_its_own_grid(bundle, phantom):
    volume, truth = phantom
    prediction = Predictor(str(bundle), device="cpu").predict([volume])
    assert prediction.labels.shape == volume.array.shape
    assert prediction.labels.dtype == np.uint8
    assert _dice(prediction.labels > 0, truth > 0, True) > 0.85


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_2d_network_segments_the_slices_of_a_volume(bundle, phantom, tmp_path, engine):
    volume, _ = phantom
    flat = turn_2d(make_tiny_bundle(tmp_path / "flat"))
    if engine == "openvino":
        pytest.importorskip("openvino")
    assert not [f for f in check_bundle(flat) if f.level == "error"]
    on_slices = Predictor(str(flat), device="cpu", engine=engine)
    assert on_slices.backend.name == engine
    expected = Predictor(str(bundle), device="cpu").predict([volume]).labels
    assert np.array_equal(on_slices.predict([volume]).labels, expected)


@pytest.mark.parametrize("flip", [(0,), (1, 2), (0, 1, 2)])
def test_storing_the_axes_the_other_way_round_gives_the_same_labels(bundle, phantom, flip):
    volume, _ = phantom
    affine = volume.affine.copy()
    for axis in flip:
        affine[:3, 3] += affine[:3, axis] * (volume.array.shape[axis] - 1)
        affine[:3, axis] *= -1
    flipped = Volume(np.flip(volume.array, flip).copy(), affine, volume.header, volume.path, volume.file_shape)
    predictor = Predictor(str(bundle), device="cpu")
    straight, turned = predictor.predict([volume]).labels, np.flip(predictor.predict([flipped]).labels, flip)
    assert (straight != turned).mean() < 0.002


def test_probabilities_lie_on_the_input_grid_and_sum_to_one(bundle, phantom):
    volume, _ = phantom
    prediction = Predictor(str(bundle), device="cpu").predict([volume], probabilities=True)
    assert prediction.probabilities.shape == (3, *volume.array.shape)
    assert np.allclose(prediction.probabilities.sum(axis=0), 1, atol=1e-4)
    assert np.array_equal(prediction.probabilities.argmax(axis=0), prediction.labels)


def test_low_memory_differs_only_at_borders(bundle, phantom):
    volume, _ = phantom
    normal = Predictor(str(bundle), device="cpu", memory="normal").predict([volume]).labels
    low = Predictor(str(bundle), device="cpu", memory="low").predict([volume]).labels
    assert 0 < (normal != low).mean() < 0.05


def test_a_threshold_only_takes_labels_away(bundle, phantom):
    volume, _ = phantom
    predictor = Predictor(str(bundle), device="cpu")
    plain, strict = predictor.predict([volume]).labels, predictor.predict([volume], threshold=0.9).labels
    assert 0 < (strict > 0).sum() < (plain > 0).sum()
    assert np.array_equal(strict[strict > 0], plain[strict > 0])


def test_a_constant_volume_gives_an_empty_mask_and_says_so(bundle, phantom):
    volume, _ = phantom
    empty = Volume(np.zeros_like(volume.array), volume.affine, volume.header, volume.path, volume.file_shape)
    prediction = Predictor(str(bundle), device="cpu").predict([empty], probabilities=True)
    assert not prediction.labels.any()
    assert prediction.probabilities[0].min() == 1
    assert "nothing to find" in prediction.notes[0]


def test_wrong_number_of_channels_is_refused(bundle, phantom):
    volume, _ = phantom
    with pytest.raises(ValueError, match=r"got 2 channels, the network takes 1 \(T1w\)"):
        Predictor(str(bundle), device="cpu").predict([volume, volume])


def test_channels_on_different_grids_are_refused(tmp_path, phantom):
    volume, _ = phantom
    moved = Volume(volume.array, volume.affine + np.eye(4)[:, [0]] * np.eye(4)[3], volume.header, volume.path)
    predictor = Predictor(str(make_tiny_bundle(tmp_path / "two", channels_in=2)), device="cpu")
    assert predictor.predict([volume, volume]).labels.any()
    with pytest.raises(ValueError, match="must be on one grid"):
        predictor.predict([volume, moved])


@pytest.fixture
def free_memory(monkeypatch) -> Callable[[int], None]:
    """Set how many bytes a run may take."""

    def set_to(count: int) -> None:
        monkeypatch.setattr("medseg.engines.predictor.available_memory", lambda limit: count)

    return set_to


def test_too_large_is_refused_before_the_network_runs(bundle, phantom, monkeypatch, free_memory):
    volume, _ = phantom
    free_memory(1000)
    predictor = Predictor(str(bundle), device="cpu")
    monkeypatch.setattr(predictor, "backend", None)
    with pytest.raises(InsufficientMemoryError, match="a smaller --roi-size, crop or downsample"):
        predictor.predict([volume])


def test_a_refusal_names_the_option_that_helps(bundle, phantom, free_memory):
    volume, _ = phantom
    prepared = Predictor(str(bundle), device="cpu").prepare([volume])
    free_memory(1000)
    with pytest.raises(InsufficientMemoryError, match="use --memory low"):
        Predictor(str(bundle), device="cpu", memory="normal").run(prepared)
    with pytest.raises(InsufficientMemoryError, match="leave out --save-probabilities"):
        Predictor(str(bundle), device="cpu").run(prepared, probabilities=True)


def test_a_refusal_counts_the_resampling_to_the_grid_of_the_network(bundle, phantom, free_memory):
    volume, _ = phantom
    coarse = Volume(volume.array, np.diag([6.0, 6.0, 6.0, 1.0]), volume.header, volume.path, volume.file_shape)
    predictor = Predictor(str(bundle), device="cpu")
    free_memory(80_000_000)
    with pytest.raises(InsufficientMemoryError, match=r"needs about 0\.10 GB"):
        predictor.prepare([coarse])
    # Over once the case is prepared; what the network needs fits.
    free_memory(200_000_000)
    prepared = predictor.prepare([coarse])
    free_memory(80_000_000)
    assert predictor.run(prepared).labels.shape == volume.array.shape


def test_the_budget_of_the_process_counts_what_it_holds_already(bundle, phantom):
    volume, _ = phantom
    with pytest.raises(InsufficientMemoryError, match="allow more with --max-memory"):
        Predictor(str(bundle), device="cpu", max_memory=50_000_000).predict([volume])


def test_auto_takes_the_low_plan_where_the_normal_one_does_not_fit(phantom, tmp_path, free_memory):
    volume, _ = phantom
    sheared = _sheared(volume)
    predictor = Predictor(str(make_tiny_bundle(tmp_path / "many", labels=[f"c{i}" for i in range(40)])), device="cpu")
    roomy = predictor.predict([sheared]).plan
    assert roomy.way == "classwise"
    free_memory(roomy.bytes - 1)
    prediction = predictor.predict([sheared])
    assert prediction.plan.way == "low"
    assert any("memory plan low" in n for n in prediction.notes)


def _sheared(volume: Volume) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 1] += 0.2 * affine[:3, 0]
    return replace(volume, affine=affine)


def _with_config(folder: Path, change: Callable[[dict], None]) -> str:
    path = folder / "configs" / "inference.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return str(folder)


def _spell_out_whole(config: dict) -> None:
    """Put a do-nothing transform where it keeps the classes from being mapped singly."""
    config["postprocessing"]["transforms"].insert(1, {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x"})


def _crop(config: dict) -> None:
    config["preprocessing"]["transforms"].insert(
        3, {"_target_": "CropForegroundd", "keys": "image", "source_key": "image"}
    )


@pytest.mark.parametrize(
    ("change", "shear", "way"),
    [
        (None, False, "streamed"),
        (None, True, "classwise"),
        (_crop, False, "classwise"),
        (_spell_out_whole, False, "whole"),
    ],
)
def test_every_way_back_gives_the_labels_and_probabilities_of_the_whole_way(tmp_path, phantom, change, shear, way):
    volume, _ = phantom
    volume = _sheared(volume) if shear else volume
    folder = make_tiny_bundle(tmp_path / "tiny")
    if change is not None:
        _with_config(folder, change)
    got = Predictor(str(folder), device="cpu").predict([volume], probabilities=True)
    assert got.plan.way == way
    if change is not _spell_out_whole:
        _with_config(folder, _spell_out_whole)
    expected = Predictor(str(folder), device="cpu").predict([volume], probabilities=True)
    assert expected.plan.way == "whole"
    assert np.allclose(got.probabilities, expected.probabilities, atol=1e-4)
    assert np.array_equal(got.labels, got.probabilities.argmax(axis=0))
    assert (got.labels != expected.labels).mean() < 1e-3


def test_what_follows_on_the_label_map_runs_in_every_way(tmp_path, phantom):
    volume, _ = phantom
    cleaning = {"_target_": "LabelFilterd", "keys": "pred", "applied_labels": [2]}
    folder = make_tiny_bundle(tmp_path / "tiny")
    _with_config(folder, lambda config: config["postprocessing"]["transforms"].insert(3, cleaning))
    for memory in ("normal", "low"):
        labels = Predictor(str(folder), device="cpu", memory=memory).predict([volume]).labels
        assert np.unique(labels).tolist() == [0, 2]


def test_windows_of_air_are_skipped_on_request(bundle, phantom):
    volume, _ = phantom
    array = np.zeros((60, 24, 18), dtype=np.float32)
    array[:20] = volume.array
    padded = replace(volume, array=array)
    predictor = Predictor(str(bundle), device="cpu", skip_empty=True)
    plain = Predictor(str(bundle), device="cpu").predict([padded])
    ran = []
    backend, predictor.backend = predictor.backend, lambda x: ran.append(len(x)) or backend(x)
    skipped = predictor.predict([padded])
    seen = []
    predictor.run(predictor.prepare([padded]), on_windows=lambda done, total: seen.append(total))
    assert 0 < sum(ran) < seen[0] + sum(ran)
    assert (skipped.labels[20:] == 0).all()
    assert (skipped.labels[:18] == plain.labels[:18]).mean() > 0.99


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"overlap": 1.0}, r"overlap must be in \[0, 1\)"),
        ({"tta": "flip"}, "tta must be"),
        ({"tta": "mirror"}, "names no mirror_axes"),
        ({"memory": "tiny"}, "memory must be"),
        ({"precision": "fp8"}, "precision must be"),
    ],
)
def test_bad_arguments_are_refused(bundle, arguments, match):
    with pytest.raises(ValueError, match=match):
        Predictor(str(bundle), device="cpu", **arguments)


def test_window_settings_reach_the_inferer(bundle):
    predictor = Predictor(str(bundle), device="cpu", overlap=0.5, roi_size=[8, 8, 8], sw_batch_size=2)
    inferer = predictor.windows.streaming
    assert (inferer.overlap, inferer.roi_size, inferer.sw_batch_size) == (
        0.5, (8, 8, 8), 2,
    )  # fmt: skip


def test_mirroring_uses_the_axes_of_the_bundle(tmp_path, phantom):
    volume, _ = phantom
    folder = make_tiny_bundle(tmp_path / "mirrored")
    path = folder / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["mirror_axes"] = [0]
    path.write_text(json.dumps(config))
    mirrored = Predictor(str(folder), device="cpu", tta="mirror")
    assert mirrored.windows.mirror.axes == (0,)
    # A 1 x 1 x 1 convolution commutes with mirroring.
    assert np.array_equal(
        mirrored.predict([volume]).labels, Predictor(str(folder), device="cpu").predict([volume]).labels
    )


def test_weights_that_do_not_fit_are_refused(tmp_path):
    folder = make_tiny_bundle(tmp_path / "broken")
    (folder / "models" / "model.pt").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be loaded into its network"):
        Predictor(str(folder), device="cpu")
    (folder / "models" / "model.pt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"'broken' has no weights.*train the bundle, or copy its weights there"
    ):
        Predictor(str(folder), device="cpu")


def test_bf16_agrees_with_fp32_on_almost_all_voxels(bundle, phantom):
    volume, _ = phantom
    exact = Predictor(str(bundle), device="cpu").predict([volume]).labels
    rough = Predictor(str(bundle), device="cpu", precision="bf16").predict([volume]).labels
    assert (exact != rough).mean() < 0.02


def test_a_network_that_answers_nan_is_an_error_not_an_empty_mask(bundle, phantom, monkeypatch):
    volume, _ = phantom
    predictor = Predictor(str(bundle), device="cpu")
    monkeypatch.setattr(predictor, "backend", lambda x: torch.full((len(x), 3, *x.shape[2:]), torch.nan))
    with pytest.raises(ValueError, match="answers with NaN or infinity; check its weights"):
        predictor.predict([volume])


def test_volume_errors_are_value_errors():
    assert issubclass(VolumeError, ValueError)
