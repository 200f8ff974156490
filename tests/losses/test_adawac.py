"""Tests of `medseg.losses.adawac`: golden values, the laws of its weights, and odd inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from medseg.losses import AdaptiveWeightedConsistencyLoss as Loss

LOCAL = Path(__file__).parents[1] / "golden" / "adawac"
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "adawac"
FILES = {path.stem: path for folder in (SHARED, LOCAL) for path in sorted(folder.glob("*.npz"))}
# Baselines with weights that stand still: (supervision, agreement) of a slice with a label, and without.
FIXED = {
    "d_pair": ((1.0, 0.0), (1.0, 0.0)),
    "i_dac_only": ((0.5, 0.5), (0.5, 0.5)),
    "e_pseudo": ((1.0, 0.0), (0.0, 1.0)),
}
LEARNED = ["a_adawac_lrw2", "b_adawac_lrw8_unet"]


def load(name):
    if name not in FILES:
        pytest.skip(f"no golden file {name} here")
    with np.load(FILES[name]) as file:
        return dict(file)


def make_golden_loss(golden, **more):
    options = {
        "num_samples": int(golden["cfg_num_samples"]),
        "step_size": float(golden["cfg_lr_w"]),
        "consistency_weight": float(golden["cfg_dac_encoder"]),
        "dice_weight": float(golden["cfg_dice_ratio"]),
        "max_logit": None,
    }
    return Loss(**options, **more)


def run_golden_step(loss, golden, step, joined):
    """Loss and gradients of a step, with both views in one tensor or as a pair."""
    logits, latents = (torch.from_numpy(golden[k][step]).requires_grad_() for k in ("logits", "latents"))
    labels, ids = (torch.from_numpy(golden[k][step]) for k in ("labels", "idx"))
    if joined:
        value = loss(logits.flatten(0, 1), labels.flatten(0, 1)[:, None], latents.flatten(0, 1), ids)
    else:
        value = loss(tuple(logits), tuple(labels), tuple(latents), ids)
    return value, *torch.autograd.grad(value, (logits, latents))


def check_golden_step(loss, golden, step, found):
    for key, tensor in zip(("loss", "grad_logits", "grad_latents"), found, strict=True):
        np.testing.assert_allclose(tensor.detach(), golden[f"step{step}_{key}"], rtol=1e-5, atol=1e-7, err_msg=key)
    for key in ("ce", "consistency"):
        np.testing.assert_allclose(loss.last[key], golden[f"step{step}_{key}"], rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("joined", [True, False], ids=["one tensor", "pairs"])
@pytest.mark.parametrize("name", LEARNED)
def test_state_losses_and_gradients_of_every_step_are_the_golden_ones(name, joined):
    golden = load(name)
    loss = make_golden_loss(golden)
    for step in range(len(golden["logits"])):
        check_golden_step(loss, golden, step, run_golden_step(loss, golden, step, joined))
        np.testing.assert_allclose(loss.last["weights"], golden[f"step{step}_weights"], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(loss.sample_weights(), golden[f"step{step}_table"], rtol=1e-5, atol=1e-7)
    assert loss.visits.sum() == golden["idx"].size


@pytest.mark.parametrize("name", FIXED)
def test_baselines_are_this_loss_with_weights_that_stand_still(name):
    golden = load(name)
    loss = make_golden_loss(golden, learn_weights=False)
    if name == "d_pair":
        for step in range(len(golden["logits"])):  # the published run has no features, so none are compared
            golden[f"step{step}_consistency"] = (golden["latents"][step][0] - golden["latents"][step][1]) ** 2
            golden[f"step{step}_consistency"] = 2 * golden[f"step{step}_consistency"].mean((1, 2, 3))
    for step in range(len(golden["logits"])):
        labelled = torch.from_numpy(golden["labels"][step][0]).flatten(1).any(1)
        weights = torch.where(labelled[:, None], *(torch.tensor(w) for w in FIXED[name]))
        loss.weight_logits[torch.from_numpy(golden["idx"][step])] = weights[:, 0].logit()
        check_golden_step(loss, golden, step, run_golden_step(loss, golden, step, joined=True))


def test_plain_training_on_one_view_is_this_loss_with_the_view_given_twice():
    golden = load("c_base")
    loss = make_golden_loss(golden, learn_weights=False)
    loss.weight_logits.fill_(torch.inf)
    for step in range(len(golden["logits"])):
        logits, labels, latents = (torch.from_numpy(golden[k][step]) for k in ("logits", "labels", "latents"))
        ids = torch.from_numpy(golden["idx"][step])
        value = loss((logits[0],) * 2, (labels[0],) * 2, (latents[0],) * 2, ids)
        assert value.item() == pytest.approx(golden[f"step{step}_loss"].item(), rel=1e-5)


@pytest.mark.parametrize("name", ["l_weight_recursion", "m_weight_recursion_extreme"])
def test_the_recursion_of_the_weights_holds_also_for_extreme_losses(name):
    golden = load(name)
    supervised, consistency = (torch.from_numpy(golden[key]) for key in ("supervised", "consistency"))
    loss = Loss(supervised.shape[1], step_size=float(golden["eta"]), max_logit=None)
    for step, seen in enumerate(torch.from_numpy(golden["seen"])):
        ids = seen.nonzero()[:, 0]
        loss.update(ids, supervised[step, ids], consistency[step, ids])
        np.testing.assert_allclose(loss.sample_weights(), golden["weights"][step], rtol=1e-4, atol=1e-6)
    logs = torch.stack((loss.weight_logits, -loss.weight_logits), 1)
    np.testing.assert_allclose(functional.logsigmoid(logs), golden["log_weights_final"], rtol=1e-5, atol=1e-5)


def make_batch(batch=3, channels=3, dims=2, seed=0):
    """Logits, class ids, features and ids of two views."""
    random = torch.Generator().manual_seed(seed)
    grid, coarse = ((8, 6), (4, 3)) if dims == 2 else ((8, 6, 4), (4, 3, 2))
    logits = torch.randn(2 * batch, channels, *grid, generator=random)
    target = torch.randint(0, max(channels, 2), (2 * batch, 1, *grid), generator=random)
    features = torch.randn(2 * batch, 5, *coarse, generator=random)
    return logits, target, features, torch.arange(batch)


losses_of_steps = st.lists(
    st.lists(st.tuples(st.floats(0, 4), st.floats(0, 4)), min_size=4, max_size=4), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=25)
@given(losses_of_steps, st.floats(0, 3), st.floats(0, 5))
def test_logits_are_step_size_times_the_summed_gap_in_any_order_and_shifts_change_nothing(steps, eta, shift):
    given_losses = torch.tensor(steps, dtype=torch.float64)
    loss, backwards, shifted = (Loss(4, step_size=eta, max_logit=None) for _ in range(3))
    ids = torch.arange(4)
    for supervised, consistency in given_losses.unbind(1)[0].new_tensor(steps).movedim(-1, 1):
        loss.update(ids, supervised, consistency)
        shifted.update(ids, supervised + shift, consistency + shift)
    for supervised, consistency in given_losses.flip(0).movedim(-1, 1):
        backwards.update(ids.flip(0), supervised.flip(0), consistency.flip(0))
    expected = eta * (given_losses[..., 0] - given_losses[..., 1]).sum(0)
    for other in (loss, backwards, shifted):
        torch.testing.assert_close(other.weight_logits.double(), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(other.sample_weights().sum(1), torch.ones(4))


def test_equal_losses_leave_the_weights_as_they_are():
    loss = Loss(3, step_size=5.0)
    loss.update(torch.tensor([0, 1]), torch.tensor([2.0, 0.3]), torch.tensor([2.0, 0.3]))
    assert torch.equal(loss.sample_weights(), torch.full((3, 2), 0.5))


def test_samples_that_occur_twice_in_a_batch_count_twice():
    loss = Loss(5, step_size=2.0)
    loss.update(torch.tensor([3, 1, 3]), torch.tensor([1.0, 0.5, 2.0]), torch.tensor([0.5, 1.5, 0.0]))
    assert loss.weight_logits.tolist() == [0, -2, 0, 5, 0]
    assert loss.visits.tolist() == [0, 1, 0, 2, 0]


def test_a_clamped_sample_can_change_its_mind_at_once():
    loss, gap = Loss(1, step_size=8.0, max_logit=3.0), torch.tensor([100.0])
    loss.update(torch.tensor([0]), gap, torch.zeros(1))
    assert loss.weight_logits.item() == 3
    loss.update(torch.tensor([0]), torch.zeros(1), torch.ones(1))
    assert loss.weight_logits.item() == -3
    loss.update(torch.tensor([0, 0]), gap.expand(2), torch.tensor([0.0, 201.0]))
    assert loss.weight_logits.item() == -3, "the clamp must come after the sum"


def test_step_size_0_is_half_supervision_and_half_agreement():
    batch = make_batch()
    loss = Loss(3, step_size=0.0)
    assert loss(*batch) == Loss(3, learn_weights=False)(*batch)
    assert torch.equal(loss.sample_weights(), torch.full((3, 2), 0.5))
    assert loss.visits.tolist() == [1, 1, 1]


@pytest.mark.parametrize("align", ["none", "pool"])
@pytest.mark.parametrize("distance", ["mse", "cosine", "l2"])
@pytest.mark.parametrize(("dims", "channels"), [(2, 3), (3, 3), (2, 1)])
def test_gradients_are_exact_with_frozen_weights_and_none_reaches_the_table(dims, channels, distance, align):
    logits, target, features, ids = make_batch(2, channels, dims)
    loss = Loss(2, consistency_weight=1.5, learn_weights=False, distance=distance, align=align)
    loss.weight_logits += torch.tensor([0.7, -1.2])
    corner = (slice(None), slice(None, 3), *(slice(None, 2),) * dims)
    inputs = [x[corner].double().requires_grad_() for x in (logits, features)]
    target = target[corner]
    assert torch.autograd.gradcheck(lambda z, f: loss(z, target, f, ids), inputs)
    assert not loss.weight_logits.requires_grad
    assert list(loss.parameters()) == []


def test_evaluation_and_frozen_weights_read_the_table_and_never_write_it():
    batch = make_batch()
    for loss in (Loss(3).eval(), Loss(3, learn_weights=False)):
        loss.weight_logits.fill_(1.0)
        loss(*batch)
        assert torch.equal(loss.weight_logits, torch.ones(3))
        assert not loss.visits.any()
        torch.testing.assert_close(loss.last["weights"][:, 0], torch.ones(3).sigmoid())


def test_weights_of_the_same_step_are_used():
    logits, target, features, ids = make_batch()
    loss = Loss(3, step_size=2.0, dice_weight=0.0)
    value = loss(logits, target, features, ids)
    ce, consistency = loss.last["ce"], loss.last["consistency"]
    weight = torch.sigmoid(2 * (ce - consistency))
    torch.testing.assert_close(value, (weight * ce + (1 - weight) * consistency).mean())


def test_stateless_weights_come_from_the_losses_of_the_step_alone():
    logits, target, features, _ = make_batch()
    loss = Loss(1, step_size=3.0, stateless=True)
    first = loss(logits, target, features)
    assert torch.equal(loss(logits, target, features), first)
    expected = torch.sigmoid(3 * (loss.last["ce"] - loss.last["consistency"]))
    torch.testing.assert_close(loss.last["weights"][:, 0], expected)
    assert not loss.visits.any()


def test_dense_and_sparse_samples_part_in_training():
    """Two populations, structured labels and empty ones, and a network that must find the structure."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    count = 24
    images = torch.randn(count, 1, 12, 12, generator=random)
    dense = torch.arange(count) % 2 == 0
    labels = (images.roll(1, -1) + images > 0.8) & dense[:, None, None, None]
    images = torch.cat((images, dense.float()[:, None, None, None].expand_as(images)), 1)
    encoder = torch.nn.Sequential(torch.nn.Conv2d(2, 8, 3, padding=1), torch.nn.GELU(), torch.nn.AvgPool2d(2))
    decoder = torch.nn.Sequential(torch.nn.Upsample(scale_factor=2), torch.nn.Conv2d(8, 2, 1))
    loss = Loss(count, step_size=1.0, consistency_weight=4.0)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.02)
    for _ in range(60):
        ids = torch.randperm(count, generator=random)[:8]
        axes = [[[2], [3], [2, 3]][int(torch.randint(3, (), generator=random))] for _ in range(2)]
        views = torch.cat([images[ids].flip(a) for a in axes])
        target = torch.cat([labels[ids].flip(a) for a in axes]).long()
        features = encoder(views)
        value = loss(decoder(features), target, features, ids)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    weight = loss.weight_logits
    auc = (weight[dense][:, None] > weight[~dense]).float().mean()
    assert auc > 0.9
    assert weight[dense].mean() > weight[~dense].mean()
