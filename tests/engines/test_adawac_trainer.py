"""Training with AdaWAC: what an iteration leaves, resuming, and two ranks against one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.networks.nets import UNet
from monai.transforms import AsDiscreted, Compose, RandFlipd, RandGaussianNoised

from medseg.data import sample_names, with_sample_ids
from medseg.engines import AdaWACTrainer, EpochSeeder, TrainingCheckpoint
from medseg.losses import AdaptiveWeightedConsistencyLoss
from medseg.networks import FeatureTap
from medseg.transforms import PairedViewsd
from tests.engines.adawac_ranks import make_batches, make_trainer, share_uneven_batches

ROOT = Path(__file__).parents[2]
KEYS = ["image", "label"]


def make_run(folder, epochs, *, resume=False, names="abcdef", align="inverse", **more):
    random = torch.Generator().manual_seed(0)
    items = with_sample_ids(
        {"sample_name": name, "image": image, "label": (image > 0.7).float()}
        for name, image in zip(names, torch.rand(6, 1, 16, 16, generator=random), strict=True)
    )
    views = Compose([RandFlipd(KEYS, prob=0.5, spatial_axis=0), RandGaussianNoised("image", prob=0.5)])
    transform = Compose([PairedViewsd(KEYS, views)])
    torch.manual_seed(7)
    network = UNet(2, 1, 2, (4, 8, 8), (2, 2), norm="batch")
    loss = AdaptiveWeightedConsistencyLoss(6, 2.0, 3.0, align=align, sample_names=sample_names(items))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    objects = {"network": network, "optimizer": optimizer, "loss": loss}
    handlers = [EpochSeeder(3, transform), TrainingCheckpoint(str(folder), objects, resume=resume)]
    loader = DataLoader(Dataset(items, transform), batch_size=2, shuffle=True)
    return AdaWACTrainer("cpu", epochs, loader, network, optimizer, loss, train_handlers=handlers, **more)


def test_an_iteration_leaves_the_first_view_the_loss_and_the_weights(tmp_path):
    seen = []
    trainer = make_run(tmp_path, 1, postprocessing=AsDiscreted("pred", argmax=True))
    trainer.add_event_handler(
        "ITERATION_COMPLETED", lambda engine: seen.append((engine.state.batch, engine.state.output))
    )
    trainer.run()
    assert isinstance(trainer, SupervisedTrainer)
    assert len(seen) == 3
    batch, output = seen[0]
    assert len(batch) == len(output) == 2
    assert output[0]["pred"].shape == (1, 16, 16)
    assert torch.equal(output[0]["image"], batch[0]["image"])
    assert output[0]["weights"].sum() == pytest.approx(1)
    assert trainer.adaptive_loss.visits.tolist() == [1] * 6


def test_a_resumed_run_ends_in_the_identical_state(tmp_path):
    make_run(tmp_path / "whole", 4).run()
    make_run(tmp_path / "parts", 2).run()
    torch.rand(5)  # other random state than in the whole run
    make_run(tmp_path / "parts", 4, resume=True).run()
    whole, parts = (torch.load(tmp_path / f / "last.pt", weights_only=True)["objects"] for f in ("whole", "parts"))
    for name in ("network", "loss"):
        assert all(torch.equal(whole[name][key], parts[name][key]) for key in whole[name])
    assert whole["loss"]["visits"].tolist() == [4] * 6


def test_the_trainers_own_state_holds_progress_table_and_samples(tmp_path):
    trainer = make_run(tmp_path / "a", 2)
    trainer.run()
    state = trainer.state_dict()
    assert state["iteration"] == 6
    assert set(state["loss"]) == {"weight_logits", "visits", "sample_keys"}
    other = make_run(tmp_path / "b", 3)
    other.load_state_dict({**state, "max_epochs": 3})
    assert other.state.epoch == 2
    assert torch.equal(other.adaptive_loss.weight_logits, trainer.adaptive_loss.weight_logits)
    other.run()
    assert other.adaptive_loss.visits.tolist() == [3] * 6


def test_another_list_of_files_is_not_resumed_unless_asked_for(tmp_path):
    make_run(tmp_path, 1).run()
    before = (tmp_path / "last.pt").read_bytes()
    changed = make_run(tmp_path, 2, resume=True, names="abcxef")
    with pytest.raises(ValueError, match=r"1 of 6 samples are new \(such as 'x'\), 1 are gone"):
        changed.run()
    assert (tmp_path / "last.pt").read_bytes() == before
    assert not changed.adaptive_loss.visits.any()
    old = torch.load(tmp_path / "last.pt", weights_only=True)["objects"]["loss"]
    state = {**make_run(tmp_path / "other", 1).state_dict(), "loss": old}
    with pytest.raises(ValueError, match="strict=False"):
        changed.load_state_dict(state)
    changed.load_state_dict(state, strict=False)
    assert changed.adaptive_loss.visits.tolist() == [1, 1, 1, 0, 1, 1]


def test_a_network_is_tapped_once():
    trainer = make_trainer(make_batches(0, 1), 1)
    assert isinstance(trainer.network, FeatureTap)
    assert not isinstance(trainer.network.model, FeatureTap)
    network = UNet(2, 1, 2, (4, 8), (2,))
    plain = AdaWACTrainer("cpu", 1, [], network, trainer.optimizer, trainer.adaptive_loss)
    assert plain.network.model is network


def test_what_is_missing_is_named():
    trainer = make_trainer(make_batches(0, 1), 1)
    network, optimizer = trainer.network, trainer.optimizer
    with pytest.raises(TypeError, match=r"must be medseg.losses.AdaptiveWeighted.*got L1Loss.*SupervisedTrainer"):
        AdaWACTrainer("cpu", 1, [], network, optimizer, torch.nn.L1Loss())
    batch = {k: v for k, v in make_batches(0, 1)[0].items() if k != "label_view2"}
    with pytest.raises(ValueError, match=r"the batch lacks label_view2.*PairedViewsd"):
        AdaWACTrainer("cpu", 1, [batch], network, optimizer, trainer.adaptive_loss).run()
    batch = {k: v for k, v in make_batches(0, 1)[0].items() if k != "sample_id"}
    with pytest.raises(ValueError, match="sample_ids is None"):
        AdaWACTrainer("cpu", 1, [batch], network, optimizer, trainer.adaptive_loss).run()


@pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun is tested on POSIX systems")
def test_two_ranks_end_with_one_table_that_is_the_table_of_one_process(tmp_path):
    command = [
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "tests.engines.adawac_ranks", str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"2-{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in first:
        assert all(torch.equal(first[name][key], second[name][key]) for key in first[name]), name
    alone = share_uneven_batches(0, 1).state_dict()
    assert all(torch.equal(first["uneven"][key], alone[key]) for key in alone)
    trainer = make_trainer(make_batches(0, 1), 2)
    trainer.run()
    expected = {"loss": trainer.state_dict()["loss"], "network": trainer.network.state_dict()}
    assert expected["loss"]["visits"][3] >= 24
    for name, state in expected.items():
        for key, value in state.items():
            torch.testing.assert_close(first[name][key], value, rtol=1e-5, atol=1e-6)
