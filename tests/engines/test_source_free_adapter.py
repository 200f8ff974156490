"""Tests of `medseg.engines.source_free_adapter`: what trains, what is resumed, patches, baselines, and odd input."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.handlers import StatsHandler
from torch import nn

from medseg.data import ClassRatioPrior
from medseg.engines import EpochSeeder, SourceFreeAdapter, StopOnNonFiniteLoss, TrainingCheckpoint
from medseg.losses import PseudoLabelLoss, SourceFreeAdaptationLoss, WeightedEntropyLoss

PRIOR = ClassRatioPrior([0.9, 0.1])


def make_model(channels: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, channels, 1))


def make_images(count: int = 6, first: int = 0) -> list[dict]:
    return [
        {"sample_id": f"case_{i}", "image": torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(i)) + 1}
        for i in range(first, first + count)
    ]


def make_loader(images: list[dict] | None = None, **options) -> DataLoader:
    return DataLoader(Dataset(images or make_images()), batch_size=2, shuffle=True, **options)


def make_adapter(model: nn.Module | None = None, **options) -> SourceFreeAdapter:
    arguments = {
        "loss": SourceFreeAdaptationLoss([0.1, 0.9]),
        "prior": PRIOR,
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        "train_handlers": [EpochSeeder(seed=3)],
        "max_epochs": 4,
    }
    return SourceFreeAdapter(make_model() if model is None else model, **(arguments | options))


def changed(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_ratio_comes_near_to_what_is_expected():
    adapter = make_adapter(max_epochs=20)
    before = adapter.diagnose(make_loader())
    history = adapter.fit(make_loader())
    after = adapter.diagnose(make_loader())
    assert [epoch["epoch"] for epoch in history] == list(range(1, 21))
    assert history[-1]["loss"] < history[0]["loss"]
    assert after.kl < before.kl / 4
    assert abs(after.soft_ratio[1] - 0.1) < abs(before.soft_ratio[1] - 0.1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"trainable": "all"}, {"0.weight", "3.weight", "1.weight", "1.running_mean"}),
        ({"trainable": "norm"}, {"1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}),
        ({"trainable": "none"}, {"1.running_mean", "1.running_var", "1.num_batches_tracked"}),
        ({"trainable": "norm", "norm_stats": "source"}, {"1.weight", "1.bias"}),
        ({"trainable": lambda name, _: name.startswith("3."), "norm_stats": "source"}, {"3.weight", "3.bias"}),
    ],
)
def test_only_what_was_asked_for_changes(options, expected):
    model = make_model()
    before = deepcopy(model.state_dict())
    make_adapter(model, **options).fit(make_loader())
    found = changed(before, model.state_dict())
    assert found >= expected if options["trainable"] == "all" else found == expected


def test_a_stopped_run_goes_on_to_the_same_weights():
    options = {"max_epochs": 5, "ema": 0.9, "ratio_per": "case"}
    whole, first, second = (make_adapter(**options) for _ in range(3))
    whole.fit(make_loader())
    first.state.max_epochs = 2
    first.fit(make_loader())
    second.load_state_dict(torch.load(_saved(first), weights_only=True))
    second.fit(make_loader())
    for name in ("network", "average"):
        assert not changed(getattr(whole, name).state_dict(), getattr(second, name).state_dict())
    assert not changed(whole.selected_state(), second.selected_state())
    assert second.history == whole.history
    assert second.fit() == whole.history  # all epochs are done: nothing happens


def _saved(adapter: SourceFreeAdapter):
    import io

    buffer = io.BytesIO()
    torch.save(adapter.state_dict(), buffer)
    buffer.seek(0)
    return buffer


def test_a_run_is_not_resumed_with_other_images():
    first, second = make_adapter(max_epochs=1), make_adapter()
    first.fit(make_loader())
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"about 6 images, this one has 5; missing: \['case_0'\], new: \[\]"):
        second.fit(make_loader(make_images(5, first=1)))


def test_a_checkpoint_handler_saves_and_resumes(tmp_path):
    def run(epochs: int, resume: bool) -> SourceFreeAdapter:
        adapter = make_adapter(max_epochs=epochs)
        saver = TrainingCheckpoint(str(tmp_path), {"adapter": adapter}, best=None, resume=resume)
        saver.attach(adapter)
        adapter.fit(make_loader())
        return adapter

    whole = make_adapter()
    whole.fit(make_loader())
    run(2, resume=False)
    assert not changed(run(4, resume=True).network.state_dict(), whole.network.state_dict())


def test_the_averaged_weights_are_chosen_and_differ_from_the_last():
    adapter = make_adapter(ema=0.9)
    start = deepcopy(adapter.network.state_dict())
    adapter.fit(make_loader())
    selected, last = adapter.selected_state(), adapter.network.state_dict()
    gap = (last["0.weight"] - start["0.weight"]).norm()
    assert 0 < (selected["0.weight"] - start["0.weight"]).norm() < gap
    assert torch.equal(selected["1.running_mean"], last["1.running_mean"])


def test_the_epoch_of_the_lowest_loss_without_an_alarm_is_chosen():
    adapter = make_adapter(max_epochs=20)
    history = adapter.fit(make_loader())
    quiet = [e["epoch"] for e in history if not e["alarms"]]
    assert quiet
    assert adapter.selected_epoch in quiet
    assert adapter.selected_state().keys() == adapter.network.state_dict().keys()


def test_without_a_quiet_epoch_the_last_one_is_given():
    adapter = make_adapter(prior=ClassRatioPrior([0.9999, 0.0001]), optimizer=None)
    adapter.fit(make_loader())
    assert all(e["alarms"] for e in adapter.history)
    assert adapter.selected_epoch == 4
    assert not changed(adapter.selected_state(), adapter.network.state_dict())


def test_patches_share_the_ratio_of_their_case():
    # One case, whose left patch shows the structure and whose right one does not.
    ids = {"sample_id": ["a", "a"]}
    image = torch.zeros(2, 1, 8, 8)
    image[0] = 1
    model = nn.Sequential(nn.Conv2d(1, 2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.0, 30.0]).view(2, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([0.0, -15.0]))
    prior = ClassRatioPrior([0.5, 0.5])
    losses = {}
    for ratio_per in ("image", "case"):
        with pytest.warns(UserWarning, match="no batch normalisation"):
            adapter = SourceFreeAdapter(
                deepcopy(model), SourceFreeAdaptationLoss(), prior, max_epochs=1, ratio_per=ratio_per
            )
        losses[ratio_per] = adapter.fit([{"image": image, **ids}])[0]["loss"]
    assert losses["case"] == pytest.approx(0, abs=1e-4)  # the case is half full, as expected
    assert losses["image"] > 0.6  # each patch by itself is not
    with pytest.warns(UserWarning, match="no batch normalisation"):
        adapter = SourceFreeAdapter(model, SourceFreeAdaptationLoss(), prior, ratio_per="case")
    with pytest.raises(ValueError, match="needs the sample_id of every patch"):
        adapter.fit([image])


def test_the_ratio_of_a_case_is_averaged_over_iterations():
    adapter = make_adapter(ratio_per="case", optimizer=lambda p: torch.optim.SGD(p, lr=0.0), norm_stats="source")
    image = make_images(1)[0]["image"][None]
    adapter.fit([{"image": x, "sample_id": ["a"]} for x in (image, image + 1)] * 2)
    first, second = (adapter.loss_function.prior.estimate(adapter.network(x)) for x in (image, image + 1))
    expected = first
    for found in (second, *(first, second) * 7):
        expected = 0.9 * expected + 0.1 * found
    torch.testing.assert_close(adapter._case_ratios["a"], expected[0])


def test_volumes_give_ratios_by_mask_tags_and_class_ratio():
    prior = ClassRatioPrior.from_volumes_mm3({1: 100.0})
    adapter = SourceFreeAdapter(make_model(), SourceFreeAdaptationLoss(), prior)
    images = torch.randn(2, 1, 20, 50)
    with pytest.raises(ValueError, match="give spacing or affine"):
        adapter._read(images)
    ratio = torch.tensor([[0.8, 0.2]] * 2)
    batch = adapter._read({"image": images, "class_ratio": ratio, "sample_id": torch.tensor([4, 7])})
    assert torch.equal(batch.ratio, ratio)
    assert batch.ids == ("4", "7")
    in_voxels = SourceFreeAdapter(make_model(), SourceFreeAdaptationLoss(), ClassRatioPrior([None, 100], unit="voxel"))
    mask = torch.zeros(2, 1, 20, 50)
    mask[0, :, :10] = 1
    mask[1] = 1
    tags = torch.tensor([[True, True], [True, False]])
    batch = in_voxels._read({"image": images, "mask": mask, "tags": tags})
    torch.testing.assert_close(batch.ratio, torch.tensor([[0.8, 0.2], [1.0, 0.0]]))


def test_three_dimensional_metadata_reaches_the_prior():
    from monai.data import MetaTensor

    image = MetaTensor(torch.randn(1, 6, 8, 10), affine=torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0])))
    data = [{"sample_id": f"v{i}", "image": image} for i in range(2)]
    model = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.BatchNorm3d(2))
    prior = ClassRatioPrior.from_volumes_mm3({1: 96.0})
    adapter = SourceFreeAdapter(model, SourceFreeAdaptationLoss(), prior, max_epochs=1)
    history = adapter.fit(DataLoader(Dataset(data), batch_size=2))
    assert history[0]["expected_ratio"] == pytest.approx([0.9, 0.1])


def test_entropy_alone_and_a_mean_teacher_run_behind_the_same_class():
    make_adapter(loss=WeightedEntropyLoss(), trainable="norm").fit(make_loader())
    teacher = make_adapter(loss=PseudoLabelLoss(0.5), ema=0.5, max_epochs=6)
    before = deepcopy(teacher.average.module.state_dict())
    history = teacher.fit(make_loader())
    assert changed(before, teacher.selected_state())
    assert history[-1]["loss"] < history[0]["loss"]
    with pytest.raises(ValueError, match=r"learns from the averaged weights; give ema, such as 0\.98"):
        make_adapter(loss=PseudoLabelLoss())


def test_deeply_supervised_answers_count_at_full_resolution():
    class Deep(nn.Module):
        def __init__(self, stacked):
            super().__init__()
            self.inner, self.stacked = make_model(), stacked

        def forward(self, x):
            out = self.inner(x)
            if not self.training:
                return out
            return torch.stack([out, out * 0], dim=1) if self.stacked else [out, out[..., ::2, ::2]]

    results = [make_adapter(model).fit(make_loader()) for model in (make_model(), Deep(False), Deep(True))]
    assert results[0] == results[1] == results[2]


def test_handlers_of_monai_and_of_this_package_work(caplog):
    adapter = make_adapter(max_epochs=1, train_handlers=[StatsHandler(output_transform=lambda x: x["loss"].item())])
    StopOnNonFiniteLoss().attach(adapter)
    adapter.fit(make_loader())
    assert {"entropy", "kl", "soft_ratio_1", "hard_ratio_1"} <= adapter.state.metrics.keys()
    broken = make_images()
    broken[0]["image"][0, 0, 0] = float("nan")
    second = make_adapter(train_handlers=[StopOnNonFiniteLoss()])
    with pytest.raises(FloatingPointError, match="loss is nan"):
        second.fit(make_loader(broken))


def test_a_bundle_can_build_and_run_it():
    content = {
        "network": {"_target_": "UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8]},
        "loader": "$[{'image': torch.randn(2, 1, 8, 8)}]",
        "adapter": {
            "_target_": "medseg.engines.SourceFreeAdapter",
            "model": "@network",
            "loss": {"_target_": "medseg.losses.SourceFreeAdaptationLoss", "class_weight": [0.1, 0.9]},
            "prior": {"_target_": "medseg.data.ClassRatioPrior", "sizes": [0.9, 0.1]},
            "trainable": "$lambda name, parameter: 'conv' in name",
            "norm_stats": "source",
            "max_epochs": 1,
            "train_data_loader": "@loader",
        },
    }
    content["network"] |= {"strides": [2], "norm": "BATCH"}
    adapter = ConfigParser(content).get_parsed_content("adapter")
    adapter.run()
    assert len(adapter.history) == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ema": 1.0}, r"ema must be a decay in \[0, 1\), got 1"),
        ({"ratio_per": "patch"}, "ratio_per must be image or case, got 'patch'"),
        ({"max_epochs": -1}, "max_epochs must be at least 0"),
        ({"norm_stats": "none"}, "mode must be one of target, source, batch"),
        ({"trainable": "head"}, "trainable must be all, norm, none"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        make_adapter(**options)


def test_an_empty_loader_and_a_wrong_prior_are_refused():
    with pytest.raises(ValueError, match="there is no batch to adapt to"):
        make_adapter().fit([])
    with pytest.raises(ValueError, match=r"class_ratio must have shape \(2,\) or \(2, 2\)"):
        make_adapter(prior=ClassRatioPrior([0.8, 0.1, 0.1])).fit(make_loader())
