"""Tests of `medseg.bundles.check` and `medseg.bundles.trial`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medseg.bundles import Finding, check_bundle
from medseg.bundles.trial import evaluate_size, fitting_size
from tests.factories import make_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_tiny_bundle(tmp_path / "tiny_segmentation")


def change(bundle: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / "configs" / f"{name}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def errors(bundle: Path, *, dry_run: bool = False) -> list[str]:
    return [f"{f.where}: {f.message}" for f in check_bundle(bundle, dry_run=dry_run) if f.level == "error"]


def tensor(content: dict[str, Any], direction: str, key: str) -> dict[str, Any]:
    return content["network_data_format"][direction][key]


@pytest.mark.parametrize("channels", [1, 2])
def test_a_complete_bundle_has_no_errors_and_is_left_as_it_was(tmp_path, channels):
    bundle = make_tiny_bundle(tmp_path / "b", channels_in=channels)
    before = sorted(bundle.rglob("*"))
    assert check_bundle(bundle) == [
        Finding("warning", "configs/train.json", "missing; nobody can train the bundle further")
    ]
    assert sorted(bundle.rglob("*")) == before


@pytest.mark.parametrize("name", ["LICENSE", "docs/README.md", "configs/inference.json", "models/model.pt"])
def test_each_missing_file_is_an_error(bundle, name):
    (bundle / name).unlink()
    assert any(e.startswith(f"{name}: missing; ") for e in errors(bundle))


METADATA_DEFECTS = {
    "task is missing; it is mandatory, as str": lambda m: m.pop("task"),
    "version: must be like 1.2.3, got 'one'": lambda m: m.update(version="one"),
    "changelog: has no entry for the version '0.2.0'": lambda m: m.update(version="0.2.0"),
    "required_packages_version: must be dict, got 'nibabel'": lambda m: m.update(required_packages_version="nibabel"),
    "the first key must be 'pred', got ['mask']": lambda m: m["network_data_format"].update(
        outputs={"mask": tensor(m, "outputs", "pred")}
    ),
    'must start with "0": "background"': lambda m: tensor(m, "outputs", "pred").update(
        channel_def={"0": "ball", "1": "shell", "2": "background"}
    ),
    "must name the channels 0 to num_channels - 1": lambda m: tensor(m, "inputs", "image").update(num_channels=2),
    "task: 'ball # shell' holds a '#'": lambda m: m.update(task="ball # shell"),
}


@pytest.mark.parametrize("expected", METADATA_DEFECTS)
def test_each_defect_of_the_metadata_is_named(bundle, expected):
    change(bundle, "metadata", METADATA_DEFECTS[expected])
    assert any(expected in error for error in errors(bundle))


def test_the_old_name_of_the_packages_key_is_a_warning(bundle):
    change(bundle, "metadata", lambda m: m.update(optional_packages_version={}))
    assert any("is the old name" in f.message for f in check_bundle(bundle, dry_run=False) if f.level == "warning")


def test_a_network_with_other_channels_than_declared_is_an_error(bundle):
    def edit(metadata):
        pred = tensor(metadata, "outputs", "pred")
        pred.update(num_channels=2, channel_def={"0": "background", "1": "ball"})

    change(bundle, "metadata", edit)
    assert any("num_channels is 2, the network gives 3" in e for e in errors(bundle))


def test_a_network_with_another_output_shape_than_declared_is_an_error(bundle):
    change(bundle, "inference", lambda c: c["network_def"].update(stride=2))
    assert any("does not hold: the network gives (17, 16, 16)" in e for e in errors(bundle))


def test_nested_weights_are_an_error(bundle):
    import torch

    path = bundle / "models" / "model.pt"
    torch.save({"model": torch.load(path, weights_only=True)}, path)
    assert any("must be a flat state dict of tensors, got ['model']" in e for e in errors(bundle))


def test_weights_of_another_network_are_an_error(bundle):
    change(bundle, "inference", lambda c: c["network_def"].update(kernel_size=3))
    assert any("models/model.pt: weights" in e and "size mismatch" in e for e in errors(bundle))


def test_weights_that_need_unpickling_of_code_are_an_error(bundle):
    import torch

    torch.save({"weight": Path("x")}, bundle / "models" / "model.pt")
    assert any("models/model.pt: weights" in e and "UnpicklingError" in e for e in errors(bundle))


def test_a_missing_property_is_named(bundle):
    change(bundle, "inference", lambda c: c.pop("inferer") and c["evaluator"].pop("inferer"))
    assert any("Property 'inferer' with config ID 'inferer'" in e for e in errors(bundle))


def test_a_dry_run_finds_a_mask_on_another_grid(bundle):
    def drop_inversion(config):
        chain = config["postprocessing"]["transforms"]
        config["postprocessing"]["transforms"] = [t for t in chain if t["_target_"] != "Invertd"]

    change(bundle, "inference", drop_inversion)
    assert errors(bundle) == []
    assert any("the mask has the shape" in e and "add Invertd" in e for e in errors(bundle, dry_run=True))


def test_a_dry_run_finds_probabilities_in_place_of_labels(bundle):
    def drop_argmax(config):
        chain = config["postprocessing"]["transforms"]
        config["postprocessing"]["transforms"] = [t for t in chain if t["_target_"] != "AsDiscreted"]

    change(bundle, "inference", drop_argmax)
    assert any("must hold whole numbers from 0 to 2" in e for e in errors(bundle, dry_run=True))


def test_a_config_that_is_not_json_is_named_and_not_run(bundle):
    (bundle / "configs" / "inference.json").write_text("{")
    assert [e.split(":")[0] for e in errors(bundle)] == ["configs/inference.json"]


def test_results_stay_off_stdout(bundle, capsys):
    change(bundle, "inference", lambda c: c.update(imports=["$print('hello')"]))
    check_bundle(bundle, dry_run=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        (["8*n", "*", 5], (32, 33, 5)),
        (["2**p*n"], (32,)),
        (["16*n", "10*n"], (64, 40)),
        (["8*n", "2**p*n"], (32, 32)),
        (["4 * n + 1"], (33,)),
    ],
)
def test_a_size_that_fits_the_declaration_is_found(shape, size):
    assert fitting_size(shape)[0] == size


@pytest.mark.parametrize("entry", ["8*m", "n.__class__", "f(n)", "", "n/2", "9**999"])
def test_an_entry_that_is_no_expression_in_n_and_p_is_refused(entry):
    with pytest.raises(ValueError, match="must be a number"):
        evaluate_size(entry, n=1, p=1)
