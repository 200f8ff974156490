"""Trained nnU-Net folders as bundles, without nnU-Net: a tiny network stands in."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from medseg.bundles import Bundle
from medseg.cli import app
from medseg.data import read_image
from medseg.engines import Predictor
from medseg.nnunet import FoldEnsemble, NNUNetModel, write_nnunet_bundle

NETWORK = "tests.nnunet.tiny_network.TinyNetwork"
RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
LABELS = {"background": 0, "shell": 1, "core": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}


def make_model(folder: Path, *, labels=LABELS, flat: bool = False, folds: int = 2, **changes) -> Path:
    """A folder as `nnUNetv2_train` leaves it; its classes part at intensities 0.5 and 1.5."""
    path = folder / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    conv = "torch.nn.modules.conv.Conv2d" if flat else "torch.nn.modules.conv.Conv3d"
    configuration = {
        "patch_size": [6, 6] if flat else [6, 6, 6],
        "spacing": [1.0, 1.0] if flat else [1.0, 1.0, 1.0],
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": RESAMPLING,
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**RESAMPLING, "order": 1},
        "architecture": {
            "network_class_name": NETWORK, "arch_kwargs": {"conv_op": conv}, "_kw_requires_import": ["conv_op"],
        },
    }  # fmt: skip
    plans = {
        "dataset_name": "Dataset901_Toy",
        "transpose_forward": [1, 0, 2],
        "image_reader_writer": "SimpleITKIO",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {
            "base": configuration,
            "3d_fullres": {"inherits_from": "base", **changes.pop("configuration", {})},
        },
        **changes,
    }
    dataset = {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz"}
    regions = any(isinstance(value, list) for value in labels.values())
    dataset |= {"regions_class_order": [1, 2]} if regions else {}
    path.mkdir(parents=True)
    (path / "plans.json").write_text(json.dumps(plans))
    (path / "dataset.json").write_text(json.dumps(dataset))
    slopes, offsets = ([4.0, 4.0], [-2.0, -6.0]) if regions else ([0.0, 4.0, 8.0], [0.0, -2.0, -8.0])
    for fold in range(folds):
        (path / f"fold_{fold}").mkdir()
        shape = (len(slopes), 1, *([1] * (2 if flat else 3)))
        weights = {"conv.weight": torch.tensor(slopes).view(shape), "conv.bias": torch.tensor(offsets) + fold - 0.5}
        content = {
            "network_weights": {f"module.{name}": value for name, value in weights.items()},
            "logging": {"dice": [np.float64(0.5), np.float32(1)], "when": np.arange(3)},
            "init_args": {"plans": plans, "fold": fold},
            "inference_allowed_mirroring_axes": (0, 1),
        }
        torch.save(content, path / f"fold_{fold}" / "checkpoint_final.pth")
    return path


@pytest.fixture
def scan(tmp_path):
    """A block of 2 in a block of 1, in zeros that are cropped away; a coarse, oblique grid."""
    labels = np.zeros((12, 14, 9), np.float32)
    labels[3:10, 4:11, 2:8] = 1
    labels[5:8, 6:9, 4:6] = 2
    affine = np.array([[0, -1, 0, 5], [0.9, 0, 0.1, 6], [0.1, 0, -0.9, 7], [0, 0, 0, 1]]).astype(float)
    nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("flat", [False, True], ids=["3d", "2d"])
def test_a_model_folder_predicts_on_the_grid_of_the_scan(tmp_path, scan, labels, flat):
    folder = make_model(tmp_path, labels=labels, flat=flat)
    out = tmp_path / "mask.nii.gz"
    result = CliRunner().invoke(app, ["predict", str(scan), "-o", str(out), "--nnunet", str(folder), "-q"])
    assert result.exit_code == 0, result.output
    mask, image = nibabel.load(out), nibabel.load(scan)
    assert np.array_equal(mask.affine, image.affine)
    assert (np.asarray(mask.dataobj) == np.asarray(image.dataobj)).mean() > 0.97
    assert set(np.unique(mask.dataobj)) == {0, 1, 2}
    names = json.loads((tmp_path / "mask.json").read_text())["Labels"]
    assert names == {"1": list(labels)[1], "2": "core"}


def test_probabilities_are_softmax_of_interpolated_logits_and_background_outside(tmp_path, scan):
    predictor = Predictor(Bundle.load(write_nnunet_bundle(NNUNetModel.read(make_model(tmp_path)), tmp_path / "b")))
    found = predictor.predict([read_image(scan)], probabilities=True)
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)
    assert np.array_equal(found.probabilities.argmax(0), found.labels)
    assert found.probabilities[0, 0, 0, 0] > 0.999
    assert np.array_equal(predictor.predict([read_image(scan)]).labels, found.labels)


def test_folds_are_averaged_and_can_be_chosen(tmp_path):
    folder = make_model(tmp_path)
    assert NNUNetModel.read(folder).folds == ("fold_0", "fold_1")
    state, axes = NNUNetModel.read(folder, folds=[1]).load_weights()
    assert set(state) == {"networks.0.conv.weight", "networks.0.conv.bias"}
    assert axes == (0, 1)
    network = FoldEnsemble(
        NETWORK, {"conv_op": "torch.nn.modules.conv.Conv3d"}, to_import=["conv_op"], out_channels=3, folds=2
    )
    network.load_state_dict(NNUNetModel.read(folder).load_weights()[0])
    single = [part(torch.ones(1, 1, 2, 2, 2)) for part in network.networks]
    torch.testing.assert_close(network(torch.ones(1, 1, 2, 2, 2)), (single[0] + single[1]) / 2)
    with pytest.raises(FileNotFoundError, match=r"has checkpoint_final\.pth for fold_0, fold_1, not for fold_4"):
        NNUNetModel.read(folder, folds=[4])


def edit(folder: Path, name: str, change) -> Path:
    """Change a JSON file of a model folder."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"configuration": {"previous_stage": "3d_lowres"}},
            "a cascade needs the masks of 3d_lowres.*nnUNetv2_predict -c 3d_lowres.*-prev_stage_predictions",
        ),
        ({"configuration": {"architecture": None}}, r"names no architecture; it is from nnU-Net before 2\.4"),
        ({"configuration": {"architecture": {"arch_kwargs": {}}}}, r"lacks architecture\.network_class_name, arch"),
        ({"configuration": {"preprocessor_name": "Mine"}}, "images are prepared by Mine; known here: DefaultPre"),
        ({"configuration": {"normalization_schemes": ["Mine"]}}, "images are normalised by Mine; known here: ZScore"),
        ({"configuration": {"normalization_schemes": ["RGBTo01Normalization"] * 3}}, "names 1 channels.*normalises 3"),
        ({"configuration": {"resampling_fn_data": "resample_torch"}}, "resampling_fn_data is resample_torch"),
        ({"configuration": {"resampling_fn_probabilities": None}}, "resampling_fn_probabilities is None"),
        ({"configuration": {"resampling_fn_probabilities_kwargs": {"order": 3}}}, "known here: order 1 and order_z 0"),
        ({"configuration": {"resampling_fn_data_kwargs": {"order_z": 1}}}, "images are resampled.*known here: order_z"),
        ({"configuration": {"resampling_fn_data_kwargs": {"force_separate_z": True}}}, "force_separate_z of images"),
        ({"image_reader_writer": "NaturalImage2DIO"}, "images are read by NaturalImage2DIO; known here: Nibabel"),
        ({"label_manager": "Mine"}, "labels are read by Mine; known here: LabelManager; predict with nnUNetv2_predict"),
    ],
)
def test_models_that_would_be_run_wrongly_are_refused(tmp_path, changes, text):
    with pytest.raises(ValueError, match=text):
        NNUNetModel.read(make_model(tmp_path, **changes))


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        (
            "plans.json",
            lambda plans: plans["configurations"]["base"].pop("spacing"),
            r"plans\.json lacks spacing; copy",
        ),
        ("dataset.json", lambda dataset: dataset.pop("labels"), r"labels of dataset\.json are missing"),
        (
            "dataset.json",
            lambda dataset: dataset.update(labels={"background": 0, "both": [1, 2]}),
            "regions_class_order",
        ),
        ("dataset.json", lambda dataset: dataset.update(channel_names={"0": "R", "1": "G"}), "names 2 channels, plans"),
    ],
)
def test_files_that_lack_something_say_what(tmp_path, name, change, text):
    with pytest.raises(ValueError, match=text):
        NNUNetModel.read(edit(make_model(tmp_path), name, change))


def test_files_that_are_no_json_or_of_another_kind_are_named(tmp_path):
    folder = make_model(tmp_path)
    for content, text in (("{", r"plans\.json is no JSON \(.*; copy it anew"), ("[]", "must hold an object, got list")):
        (folder / "plans.json").write_text(content)
        with pytest.raises(ValueError, match=text):
            NNUNetModel.read(folder)


def test_weights_of_another_network_than_that_of_the_plans_are_refused_before_anything_is_written(tmp_path):
    folder = make_model(tmp_path, folds=1)
    path = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    content["network_weights"]["norm.running_mean"] = torch.zeros(3)
    torch.save(content, path)
    with pytest.raises(
        ValueError, match=r"1 weights of checkpoint_final\.pth do not fit .* networks\.0\.norm\.running_mean"
    ):
        write_nnunet_bundle(NNUNetModel.read(folder), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_damaged_folders_say_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"plans\.json does not exist; give a trained nnU-Net model folder"):
        NNUNetModel.read(tmp_path)
    folder = make_model(tmp_path)
    (folder / "fold_1" / "checkpoint_final.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint of nnU-Net"):
        NNUNetModel.read(folder).load_weights()
    with pytest.raises(ValueError, match=r"must end in __ and a configuration of its plans \(base, 3d_fullres\)"):
        NNUNetModel.read(folder.rename(tmp_path / "renamed"))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    folder = make_model(tmp_path, folds=1)
    path = folder / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "more": Path("x")}, path)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        NNUNetModel.read(folder).load_weights()


def test_a_bundle_is_never_written_over_something(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("kept")
    with pytest.raises(FileExistsError, match="is not empty; give a new folder"):
        write_nnunet_bundle(NNUNetModel.read(make_model(tmp_path)), tmp_path / "there")


def test_architectures_that_cannot_be_found_say_what_to_install():
    with pytest.raises(ValueError, match=r"nowhere\.Net cannot be imported"):
        FoldEnsemble("nowhere.Net", {})
    with pytest.raises(ValueError, match="does not take these arguments"):
        FoldEnsemble(NETWORK, {"wrong": 1})
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'medseg\[nnunet\]'"):
        FoldEnsemble("dynamic_network_architectures.nowhere.Net", {})


def test_the_command_line_says_what_is_wrong_with_models_folds_and_channels(tmp_path, scan):
    def run(*more: str):
        return CliRunner().invoke(app, ["predict", str(scan), "-o", str(tmp_path / "out"), *more])

    both = run("--bundle", "hippocampus_segmentation", "--nnunet", str(tmp_path))
    assert (both.exit_code, "choose one model" in both.output) == (2, True)
    lone = run("--folds", "0")
    assert (lone.exit_code, "give its folder with --nnunet" in lone.output) == (2, True)
    absent = run("--nnunet", str(tmp_path / "absent"))
    assert (absent.exit_code, "plans.json does not exist" in absent.output) == (2, True)
    folder = make_model(tmp_path)
    twice = run("--nnunet", str(folder), "--nnunet", str(folder))
    assert (twice.exit_code, "for an ensemble of configurations run each" in twice.output) == (2, True)
    unknown = run("--nnunet", str(folder), "--folds", "0,7")
    assert (unknown.exit_code, "for fold_0, fold_1, not for fold_7" in unknown.output) == (2, True)
    network = {"network_class_name": "dynamic_network_architectures.nowhere.Net", "arch_kwargs": {}}
    edit(folder, "plans.json", lambda p: p["configurations"]["base"]["architecture"].update(network))
    lacking = run("--nnunet", str(folder))
    assert (lacking.exit_code, "pip install 'medseg[nnunet]'" in lacking.output) == (3, True)


def test_a_scan_with_too_few_channels_is_refused(tmp_path, scan):
    two = {"normalization_schemes": ["NoNormalization"] * 2, "use_mask_for_norm": [False] * 2}
    folder = make_model(tmp_path, configuration=two)
    edit(folder, "dataset.json", lambda dataset: dataset.update(channel_names={"0": "T1", "1": "T2"}))
    for fold in range(2):
        path = folder / f"fold_{fold}" / "checkpoint_final.pth"
        content = torch.load(path, weights_only=False)
        weights = content["network_weights"]
        weights["module.conv.weight"] = weights["module.conv.weight"].repeat(1, 2, 1, 1, 1)
        torch.save(content, path)
    arguments = ["predict", str(scan), "-o", str(tmp_path / "out"), "--nnunet", str(folder)]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, "expected 2: one volume for each channel" in result.output) == (4, True)
    named = CliRunner().invoke(app, ["predict", *arguments[2:], "--channels", f"T1={scan}"])
    assert (named.exit_code, "--channels T1=FILE --channels T2=FILE" in named.output) == (2, True)
