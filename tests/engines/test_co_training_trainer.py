"""Training in two stages: what the network sees, unlabelled images, the guard, and going on from a saved state."""

from __future__ import annotations

import pytest
import torch
from monai.engines.utils import IterationEvents

from medseg.engines import CoTrainingTrainer
from medseg.losses import DualPathZoneLoss
from medseg.networks import DualPathZoneNet
from medseg.networks.dual_path import ZONES

SIZE = (2, 8, 16)


def make_network(aux: str | None = None, **more) -> DualPathZoneNet:
    torch.manual_seed(0)
    return DualPathZoneNet(features=[2, 4, 4, 4, 4], dropout=0.0, aux=aux, **more)


def make_batches(count: int = 2, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.rand(2, 1, *SIZE, generator=generator),
            "label": torch.randint(0, 5, (2, 1, *SIZE), generator=generator),
            "label_distance": torch.rand(2, 4, *SIZE, generator=generator),
        }
        for _ in range(count)
    ]


def make_trainer(network, *, epochs=1, batches=None, loss=None, rate=1e-2, **more) -> CoTrainingTrainer:
    loss = DualPathZoneLoss(aux=network.aux, ramp_epochs=0) if loss is None else loss
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    return CoTrainingTrainer("cpu", epochs, batches or make_batches(), network, optimizer, loss, **more)


def watch(trainer: CoTrainingTrainer, name: str = "disagreement") -> list[float]:
    """Values of one part of the loss, filled in as the trainer runs."""
    values: list[float] = []
    trainer.add_event_handler(
        IterationEvents.LOSS_COMPLETED, lambda: values.append(float(trainer.state.output[name].detach()))
    )
    return values


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_the_first_stage_leaves_the_disagreement_out_and_the_second_takes_it_in():
    found = {}
    for stage in (1, 2):
        trainer = make_trainer(make_network("sdf"), stage=stage, batches=make_batches(1))
        seen = {name: watch(trainer, name) for name in ("loss", "supervised", "auxiliary", "disagreement")}
        trainer.run()
        found[stage] = {name: values[0] for name, values in seen.items()}
    first, second = found[1], found[2]
    assert first["loss"] == pytest.approx(first["supervised"] + 0.1 * first["auxiliary"], rel=1e-5)
    assert second["loss"] == pytest.approx(first["loss"] + second["disagreement"], rel=1e-5)
    assert first["disagreement"] == second["disagreement"] > 0


def test_the_second_stage_makes_the_branches_agree():
    network = make_network()
    loss = DualPathZoneLoss(aux=None, lambda_cot=10, ramp_epochs=0)
    trainer = make_trainer(network, stage=2, epochs=15, batches=make_batches(1), rate=0.05, loss=loss)
    values = watch(trainer)
    trainer.run()
    assert values[-1] < 0.5 * values[0], values


def test_unlabelled_images_change_the_second_stage_and_their_loader_starts_anew():
    plain, helped = make_network(), make_network()
    make_trainer(plain, stage=2, batches=make_batches(3)).run()
    unlabelled = [{"image": batch["image"]} for batch in make_batches(2, seed=5)]
    trainer = make_trainer(helped, stage=2, batches=make_batches(3), unlabelled_data_loader=unlabelled)
    trainer.run()
    assert not torch.equal(weights(plain), weights(helped))
    assert len(trainer.state.output) == 2  # the labelled items alone
    assert trainer.state.output[0]["pred"].shape == (5, *SIZE)


def test_unlabelled_images_of_another_size_or_none_at_all_are_refused():
    for loader, message in (
        ([{"image": torch.zeros(1, 1, 2, 8, 8)}], r"unlabelled images must have shape \(1, 2, 8, 16\)"),
        ([], "unlabelled_data_loader gives no batch"),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer(make_network(), stage=2, unlabelled_data_loader=loader).run()


@pytest.mark.filterwarnings("ignore:lambda_sup is 0")
def test_branches_that_collapse_without_labels_are_noticed():
    network = make_network()
    loss = DualPathZoneLoss(aux=None, lambda_sup=0, lambda_cot=1, ramp_epochs=0)
    trainer = make_trainer(network, stage=2, loss=loss, collapse_guard=0.5)
    make_constant = torch.nn.init.zeros_
    trainer.run()
    for head in network.heads:
        make_constant(head.weight)
    trainer.state.max_epochs = 40
    with pytest.raises(RuntimeError, match=r"the branches collapse: the shared zones vary by .*collapse_guard 0.5"):
        trainer.run()


def test_a_resumed_run_ends_with_the_weights_of_the_unbroken_one():
    unbroken, broken = make_network(), make_network()
    make_trainer(unbroken, stage=2, epochs=4, loss=DualPathZoneLoss(aux=None, ramp_epochs=3)).run()
    first = make_trainer(broken, stage=2, epochs=2, loss=DualPathZoneLoss(aux=None, ramp_epochs=3))
    first.run()
    second = make_trainer(broken, stage=2, epochs=4, loss=DualPathZoneLoss(aux=None, ramp_epochs=3))
    state = first.state_dict()
    assert set(state["spread"]) == {"first", "running"}
    second.load_state_dict({**state, "max_epochs": 4})
    assert second.spread == state["spread"]
    second.run()
    assert torch.equal(weights(unbroken), weights(broken))


def test_a_state_of_the_other_stage_is_refused():
    state = make_trainer(make_network(), stage=1).state_dict()
    with pytest.raises(ValueError, match="the saved state is of stage 1, but this trainer runs stage 2"):
        make_trainer(make_network(), stage=2).load_state_dict(state)


def test_identical_branches_are_warned_of():
    network = make_network(branches=(ZONES, ZONES))
    for part in (network.stems, network.trunks, network.decoders, network.heads):
        part[1].load_state_dict(part[0].state_dict())
    loss = DualPathZoneLoss((ZONES, ZONES), aux=None)
    with pytest.warns(UserWarning, match="never disagree"):
        make_trainer(network, stage=2, loss=loss).run()


def test_parts_that_do_not_belong_together_are_refused():
    network = make_network()
    with pytest.raises(TypeError, match=r"network must be a medseg\.networks\.DualPathZoneNet, got Conv3d"):
        CoTrainingTrainer("cpu", 1, [], torch.nn.Conv3d(1, 1, 1), None, DualPathZoneLoss())
    with pytest.raises(TypeError, match="loss_function must be"):
        make_trainer(network, loss=torch.nn.L1Loss())
    with pytest.raises(ValueError, match="must have the same aux, got None and sdf"):
        make_trainer(network, loss=DualPathZoneLoss())
    with pytest.raises(ValueError, match="stage must be 1 or 2, got 3"):
        make_trainer(network, stage=3)
    with pytest.raises(ValueError, match="unlabelled_data_loader is for stage 2"):
        make_trainer(network, unlabelled_data_loader=make_batches())
    with pytest.raises(ValueError, match="lambda_cot 0, with which stage 2 is stage 1"):
        make_trainer(network, stage=2, loss=DualPathZoneLoss(aux=None, lambda_cot=0))
    with pytest.raises(ValueError, match=r"collapse_guard must lie in \[0, 1\)"):
        make_trainer(network, stage=2, collapse_guard=1.0)
