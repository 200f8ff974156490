"""The trainer draws from seed and iteration, fits samples to all annotations, and goes on after a stop."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.utils.enums import CommonKeys

from medseg.data import make_rater_phantom
from medseg.engines import EpochSeeder, ProbabilisticTrainer, StopOnNonFiniteLoss, TrainingCheckpoint
from medseg.losses import FocalTverskyLoss, ProbabilisticSegLoss, SampleSetLoss
from medseg.networks import ProbabilisticUNet


def make_batches(count: int = 2, raters: int = 3) -> list[dict[str, torch.Tensor]]:
    names = ("over", "under", "first_lobe")[:raters]
    batches = []
    for k in range(count):
        drawn = [make_rater_phantom((24, 24), raters=names, seed=2 * k + i, small_lesions=0) for i in range(2)]
        image, label = (torch.stack([torch.from_numpy(d[part]) for d in drawn]) for part in (0, 1))
        batches.append({"image": image[:, None], "label": label})
    return batches


def make_trainer(batches, epochs: int = 1, *, loss=None, seed: int = 0, out_channels: int = 1, **options):
    torch.manual_seed(0)
    network = ProbabilisticUNet(2, out_channels=out_channels, features=4, depth=3)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    loss = ProbabilisticSegLoss(kl_weight=0.1) if loss is None else loss
    return ProbabilisticTrainer("cpu", epochs, batches, network, optimizer, loss, seed=seed, **options)


def weights_of(trainer: ProbabilisticTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.network.parameters()])


def test_the_loss_falls_and_every_parameter_moves():
    losses = []
    trainer = make_trainer(make_batches(), epochs=15, train_handlers=[StopOnNonFiniteLoss()])
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda e: losses.append(float(e.state.output[0][CommonKeys.LOSS]))
    )
    trainer.run()
    assert losses[-1] < 0.7 * losses[0]
    still = [name for name, p in trainer.network.named_parameters() if torch.equal(before[name], p)]
    assert still == []


def test_the_output_holds_samples_for_all_annotations_or_as_many_as_asked_for():
    for samples, expected in ((None, 3), (5, 5)):
        trainer = make_trainer(make_batches(1), samples=samples)
        trainer.run()
        assert trainer.state.output[0][CommonKeys.PRED].shape == (expected, 1, 24, 24)
        assert trainer.state.output[0][CommonKeys.LABEL].shape == (3, 1, 24, 24)


def test_the_same_seed_trains_the_same_and_another_one_something_else():
    one, again, other = (make_trainer(make_batches(), seed=seed) for seed in (1, 1, 2))
    for trainer in (one, again, other):
        torch.manual_seed(7 if trainer is again else 3)  # nothing comes from the global generator
        trainer.run()
    assert torch.equal(weights_of(one), weights_of(again))
    assert not torch.equal(weights_of(one), weights_of(other))


def test_a_resumed_run_ends_with_the_weights_of_the_unbroken_one(tmp_path):
    def run(epochs: int, folder, resume: bool = False, seed: int = 0) -> torch.Tensor:
        trainer = make_trainer(make_batches(), epochs, seed=seed, train_handlers=[EpochSeeder(0)])
        objects = {"network": trainer.network, "optimizer": trainer.optimizer}
        TrainingCheckpoint(str(folder), objects, resume=resume).attach(trainer)
        trainer.run()
        return weights_of(trainer)

    whole = run(3, tmp_path / "whole")
    run(1, tmp_path / "broken")
    assert torch.equal(run(3, tmp_path / "broken", resume=True), whole)


def test_the_state_dict_carries_progress_and_seed():
    trainer = make_trainer(make_batches(), epochs=2, seed=5)
    trainer.run()
    state = trainer.state_dict()
    other = make_trainer(make_batches(), epochs=2, seed=0)
    other.load_state_dict(state)
    assert (other.seed, other.state.iteration) == (5, 4)


def test_annotations_that_do_not_exist_are_never_drawn_nor_counted():
    batches = make_batches(1)
    batches[0]["annotation_mask"] = torch.tensor([[True, False, True], [False, True, False]])
    spoiled = [{**batches[0], "label": batches[0]["label"].float().clone()}]
    spoiled[0]["label"][0, 1], spoiled[0]["label"][1, 0] = torch.nan, torch.nan
    spoiled[0]["label"][1, 2] = 7
    one, two = (make_trainer(b, epochs=6) for b in (batches, spoiled))
    one.run()
    two.run()
    torch.testing.assert_close(weights_of(one), weights_of(two))


def test_all_annotations_are_drawn_in_time():
    trainer = make_trainer(make_batches(1))
    annotations = torch.arange(3.0).view(1, 3, 1, 1, 1).expand(2, 3, 1, 4, 4)
    seen = set()
    for trainer.state.iteration in range(30):
        drawn = trainer._draw(annotations, None, trainer._generator())
        assert drawn.shape == (2, 1, 4, 4)
        seen.add(tuple(drawn[:, 0, 0, 0].tolist()))
    assert len(seen) > 6  # every item draws for itself


def test_class_ids_train_a_network_of_several_classes_with_a_loss_on_single_masks_beside():
    batches = make_batches(1)
    batches[0]["label"][:, :, :4] = 2
    flags = {"softmax": True, "to_onehot_y": True}
    loss = ProbabilisticSegLoss(SampleSetLoss("sinkhorn", **flags), FocalTverskyLoss(**flags), seg_weight=0.1)
    trainer = make_trainer(batches, loss=loss, out_channels=3)
    trainer.run()
    assert trainer.state.output[0][CommonKeys.PRED].shape == (3, 3, 24, 24)


def test_weights_of_raters_reach_the_distance():
    batches = make_batches(1)
    plain = make_trainer(batches)
    weighted = make_trainer([{**batches[0], "annotation_weights": torch.tensor([[1.0, 1.0, 9.0]] * 2)}])
    plain.run()
    weighted.run()
    assert not torch.equal(weights_of(plain), weights_of(weighted))


def test_what_does_not_fit_is_refused():
    network, batches = ProbabilisticUNet(2, features=4, depth=2), make_batches(1)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    with pytest.raises(TypeError, match=r"network must be a medseg.networks.ProbabilisticUNet, got Conv2d"):
        ProbabilisticTrainer("cpu", 1, batches, torch.nn.Conv2d(1, 1, 1), optimizer, ProbabilisticSegLoss())
    with pytest.raises(TypeError, match=r"loss_function must be a .*ProbabilisticSegLoss, got SampleSetLoss"):
        ProbabilisticTrainer("cpu", 1, batches, network, optimizer, SampleSetLoss())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"samples must be at least 1, or None .*got 0"):
        ProbabilisticTrainer("cpu", 1, batches, network, optimizer, ProbabilisticSegLoss(), samples=0)
    with pytest.raises(ValueError, match=r"label must have shape \(2, M, 24, 24\), one annotation a channel"):
        make_trainer([{**batches[0], "label": batches[0]["label"][..., 1:]}]).run()
