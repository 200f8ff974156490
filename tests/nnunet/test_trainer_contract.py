"""Every trainer's loss and optimizer with what nnU-Net hands them; a stand-in takes nnU-Net's place."""

from __future__ import annotations

import importlib.util
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from medseg.nnunet import trainer_folder

SIZES = [(8, 12, 8), (4, 6, 4), (2, 3, 2)]
LOSSES = ["FusedDiceCE", "FocalTversky", "MIPLoss", "BettiMatching", "AdaWAC"]
KINDS = {
    "labels": {"has_regions": False, "has_ignore_label": False, "ignore_label": None},
    "labels and ignore": {"has_regions": False, "has_ignore_label": True, "ignore_label": 3},
    "regions": {"has_regions": True, "has_ignore_label": False, "ignore_label": None},
    "regions and ignore": {"has_regions": True, "has_ignore_label": True, "ignore_label": 3},
}
# All others refuse what they are not named with.
TAKEN = {("FusedDiceCE", "labels and ignore")} | {
    (name, kind) for name in LOSSES for kind in ("labels", "regions") if (name, kind) != ("AdaWAC", "regions")
}


class StandIn:
    """As much of nnU-Net's trainer as ours ask for."""

    is_ddp, fold, num_epochs, num_input_channels, enable_deep_supervision = False, 0, 10, 1, True
    configuration_manager = SimpleNamespace(batch_dice=True, patch_size=[8, 8, 8])

    def __init__(self, plans=None, configuration="3d_fullres", fold=0, dataset_json=None, device=None):
        self.current_epoch = 0

    def _get_deep_supervision_scales(self):
        return [[1, 1, 1], [0.5] * 3, [0.25] * 3]

    def on_train_epoch_start(self):
        pass


@pytest.fixture
def trainers(monkeypatch):
    """The file of trainers, imported over the stand-in as nnU-Net imports it."""
    for name in ("nnunetv2", "nnunetv2.training", "nnunetv2.training.nnUNetTrainer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    name = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
    module = ModuleType(name)
    monkeypatch.setattr(module, "nnUNetTrainer", StandIn, raising=False)
    monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("medseg_trainers", trainer_folder() / "medseg_trainers.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def make_batch(kind: str, dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits, and int16 ids or boolean regions, with the label to ignore in the first planes where there is one."""
    random = torch.Generator().manual_seed(0)
    channels = 2 if kind.startswith("regions") else 3
    logits = [torch.randn(2, channels, *size, generator=random).to(dtype).requires_grad_() for size in SIZES]
    if kind.startswith("regions"):
        return logits, [torch.rand(2, channels, *size, generator=random) > 0.6 for size in SIZES]
    labels = [torch.randint(3, (2, 1, *size), generator=random, dtype=torch.int16) for size in SIZES]
    if kind.endswith("ignore"):
        for label in labels:
            label[:, :, :1] = 3
    return logits, labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_trainer_takes_what_nnunet_gives_or_says_that_it_does_not(trainers, name, kind, dtype):
    trainer = getattr(trainers, f"nnUNetTrainer{name}")({}, "3d_fullres", 0, {})
    trainer.label_manager = SimpleNamespace(**KINDS[kind])
    if (name, kind) not in TAKEN:
        with pytest.raises(NotImplementedError, match=rf"nnUNetTrainer{name} (needs labels|knows no label to ignore)"):
            trainer._build_loss()
        return
    loss = trainer._build_loss()
    loss.finest_weight = 0.1
    logits, targets = make_batch(kind, dtype)
    value = loss(logits, targets) if trainer.enable_deep_supervision else loss(logits[0], targets[0])
    value.backward()
    assert value.ndim == 0
    assert math.isfinite(value.item())
    gradient = logits[0].grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.any()
    if kind.endswith("ignore"):
        assert not gradient[:, :, :1].any()


def test_the_list_of_losses_names_every_trainer_that_has_one(trainers):
    own = [kind for kind in vars(trainers).values() if isinstance(kind, type) and hasattr(kind, "make_loss")]
    assert {kind.__name__ for kind in own} == {"_LossTrainer"} | {f"nnUNetTrainer{name}" for name in LOSSES}


def test_the_weight_of_topology_rises_with_the_epochs(trainers):
    trainer = trainers.nnUNetTrainerBettiMatching({}, "3d_fullres", 0, {})
    trainer.label_manager = SimpleNamespace(**KINDS["labels"])
    trainer.loss = trainer._build_loss()
    weights = []
    for trainer.current_epoch in (0, 1, 5):
        trainer.on_train_epoch_start()
        weights.append(trainer.loss.finest_weight)
    assert weights[0] == 0
    assert 0 < weights[1] < weights[2] <= trainer.betti_weight


def make_network() -> nn.Sequential:
    """As nnU-Net builds them: a norm after all convolutions but the last, which gives the logits."""
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.LeakyReLU(), nn.Conv3d(4, 3, 1)
    )


# nnU-Net hands its schedule the number of the epoch, of which torch would rather not be told.
@pytest.mark.filterwarnings("ignore:The epoch parameter in")
def test_adamp_knows_the_weights_before_norms_and_decays_no_bias(trainers):
    trainer = trainers.nnUNetTrainerAdamP({}, "3d_fullres", 0, {})
    first, norm, _, last = trainer.network = make_network()
    optimizer, schedule = trainer.configure_optimizers()
    known = {id(p): (g["scale_invariant"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert known[id(first.weight)] == (True, 0.01)
    assert known[id(last.weight)] == ("cosine", 0.01)
    assert {known[id(p)] for p in (first.bias, last.bias, norm.weight, norm.bias)} == {(False, 0.0)}
    assert len(known) == 6
    optimizer.step()
    schedule.step(5)
    assert 0 < optimizer.param_groups[0]["lr"] < trainer.initial_lr


def test_adamp_looks_inside_a_compiled_network(trainers):
    trainer = trainers.nnUNetTrainerAdamP({}, "3d_fullres", 0, {})
    trainer.network = torch.compile(make_network(), backend="eager")
    optimizer, _ = trainer.configure_optimizers()
    assert [group["scale_invariant"] for group in optimizer.param_groups if group["weight_decay"]] == [True, "cosine"]


def test_lion_decays_the_matrices_of_convolutions_alone(trainers):
    trainer = trainers.nnUNetTrainerLion({}, "3d_fullres", 0, {})
    trainer.network = make_network()
    optimizer, _ = trainer.configure_optimizers()
    assert [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == [(0.1, 2), (0.0, 4)]
