"""Tests of `medseg.losses.betti_matching`: published values and gradients, hand-made cases, and odd inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.losses import BettiMatchingLoss

LOCAL = Path(__file__).parents[1] / "golden" / "betti_matching"
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "betti_matching"
FILES = {path.name: path for folder in (SHARED, LOCAL) for path in sorted(folder.glob("*.npz"))}
PAIRS = [name for name in FILES if not name.startswith("multiclass")]
MULTICLASS = [name for name in FILES if name.startswith("multiclass")]
VARIANTS = {
    "both": {"filtration": "bothlevels"},
    "push": {"push_unmatched_to_1_0": True},
    "thr0.1": {"barcode_length_threshold": 0.1},
    "w0.5_0.25": {"topology_weights": [0.5, 0.25]},
    "push_thr0.1_w0.5_0.5": {
        "push_unmatched_to_1_0": True,
        "barcode_length_threshold": 0.1,
        "topology_weights": [0.5, 0.5],
    },
}


def load_pair(name: str, dtype: torch.dtype) -> tuple[dict[str, np.ndarray], torch.Tensor, torch.Tensor]:
    with np.load(FILES[name]) as file:
        golden = dict(file)
    pred, target = (torch.from_numpy(golden[key])[None, None].to(dtype) for key in ("pred", "target"))
    return golden, pred.requires_grad_(), target


def distinct(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Values in (0, 1) that no two voxels share, in random order."""
    count = int(np.prod(shape))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return ((order.double() + 1) / (count + 1)).reshape(shape)


def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    """A target of two squares; a prediction of both at 0.8125 and a lone pixel of 0.5."""
    pred, target = torch.zeros(2, 1, 1, 9, 9)
    for part in (slice(1, 3), slice(6, 8)):
        pred[..., part, part], target[..., part, part] = 0.8125, 1
    pred[..., 1, 7] = 0.5
    return pred, target


@pytest.mark.skipif(not FILES, reason="no golden values here")
@pytest.mark.parametrize("filtration", ["superlevel", "sublevel"])
@pytest.mark.parametrize("rule", ["all", "positive"])
@pytest.mark.parametrize("name", PAIRS)
def test_losses_and_gradients_are_those_of_the_published_code(name, filtration, rule):
    golden, pred, target = load_pair(name, torch.float64)
    prefix = f"{filtration}/" if rule == "all" else f"strict/{filtration}/"
    if f"{prefix}loss_by_dim" not in golden:
        prefix = f"{filtration}/strict/"
    if f"{prefix}loss_by_dim" not in golden:
        pytest.skip("no values of this rule for this image")
    options = {"filtration": filtration, "image_bars": rule}
    for dim, expected in enumerate(golden[f"{prefix}loss_by_dim"]):
        found = BettiMatchingLoss(dims=[dim], **options)(pred, target).item()
        assert found == pytest.approx(expected, abs=1e-6)
    loss = BettiMatchingLoss(**options)(pred, target)
    (gradient,) = torch.autograd.grad(loss, pred)
    np.testing.assert_allclose(gradient[0, 0], golden[f"{prefix}grad"], atol=1e-6)


@pytest.mark.skipif(not FILES, reason="no golden values here")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", PAIRS)
def test_options_give_the_values_of_the_published_code(name, variant):
    golden, pred, target = load_pair(name, torch.float32)
    if f"variant/{variant}/loss" not in golden:
        pytest.skip("this variant was not computed for this image")
    loss = BettiMatchingLoss(**VARIANTS[variant])(pred, target)
    (gradient,) = torch.autograd.grad(loss, pred)
    np.testing.assert_allclose(loss.item(), golden[f"variant/{variant}/loss"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient[0, 0], golden[f"variant/{variant}/grad"], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not MULTICLASS, reason="no golden values here")
@pytest.mark.parametrize("include_background", [False, True])
@pytest.mark.parametrize("name", MULTICLASS)
def test_several_classes_give_the_values_of_the_published_code(name, include_background):
    golden = np.load(FILES[name])
    logits, target = torch.from_numpy(golden["logits"]).requires_grad_(), torch.from_numpy(golden["target"])
    prefix = f"softmax/include_background={include_background}"
    loss = BettiMatchingLoss(include_background, softmax=True)(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    np.testing.assert_allclose(loss.item(), golden[f"{prefix}/loss"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, golden[f"{prefix}/grad"], rtol=1e-4, atol=1e-5)


def test_two_matched_squares_and_a_lone_pixel_cost_what_the_formula_says():
    pred, target = blobs()
    assert BettiMatchingLoss()(pred, target).item() == 2 * 0.1875**2 + 0.5**2
    assert BettiMatchingLoss(topology_weights=[2, 3])(pred, target).item() == 4 * 0.1875**2 + 3 * 0.5**2
    assert BettiMatchingLoss(barcode_length_threshold=0.5)(pred, target).item() == 2 * 0.1875**2
    assert BettiMatchingLoss(dims=[1])(pred, target).item() == 0


def test_an_empty_prediction_of_one_structure_costs_nothing_but_with_the_infinite_bar():
    target = torch.zeros(1, 1, 6, 6)
    target[..., 2:4, 2:4] = 1
    pred = torch.zeros_like(target, requires_grad=True)
    assert BettiMatchingLoss()(pred, target).item() == 0
    loss = BettiMatchingLoss(include_essential=True)(pred, target)
    assert loss.item() == 2
    assert torch.autograd.grad(loss, pred)[0].sum() == -4


def test_pushing_erases_a_surplus_pixel_and_fills_its_saddle():
    pred, target = torch.zeros(2, 1, 1, 1, 5)
    pred[..., 0], pred[..., 2], pred[..., 4] = 0.9, 0.25, 0.5
    target[..., 0] = 1
    pred.requires_grad_()
    loss = BettiMatchingLoss(push_unmatched_to_1_0=True)(pred, target)
    (gradient,) = torch.autograd.grad(loss, pred)
    assert loss.item() == pytest.approx(2 * (0.25**2 + 1) + 2 * (0.5**2 + 1))
    assert gradient[0, 0, 0].tolist() == pytest.approx([0, -4, 1, -4, 2])


@pytest.mark.parametrize("shape", [(1, 3, 6, 5), (2, 2, 4, 3, 4)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"filtration": "bothlevels", "boundary": "foreground"},
        {"boundary": "background", "include_essential": True},
        {"push_unmatched_to_1_0": True, "barcode_length_threshold": 0.2},
        {"image_bars": "positive", "topology_weights": [0.5, 2]},
    ],
)
def test_first_and_second_derivatives_are_exact_away_from_ties(shape, options):
    pred, target = distinct(shape, 0).requires_grad_(), (distinct(shape, 1) > 0.5).double()
    loss = BettiMatchingLoss(**options)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), pred, eps=1e-5)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, target), pred, eps=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([(5, 6), (3, 4, 4), (1, 4, 5)]))
def test_identical_images_cost_nothing_and_swapping_changes_nothing(seed, shape):
    pred, target = (distinct((1, 1, *shape), seed + i) for i in range(2))
    loss = BettiMatchingLoss(filtration="bothlevels")
    assert loss(pred, pred).item() == 0
    torch.testing.assert_close(loss(pred, target), loss(target, pred))


@pytest.mark.parametrize("axis", [2, 3])
def test_mirroring_changes_nothing_where_features_lie_apart(axis):
    pred, target = blobs()
    for options in ({}, {"boundary": "foreground"}, {"filtration": "bothlevels"}):
        loss = BettiMatchingLoss(**options)
        assert loss(pred.flip(axis), target.flip(axis)) == loss(pred, target)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (1, 6, 5), (4, 1, 5), (3, 4, 1), (1, 1, 1)])
@pytest.mark.parametrize("kind", ["constant", "empty", "full", "saturated"])
def test_flat_and_uniform_images_give_a_finite_loss_and_gradient(shape, kind):
    target = (distinct((2, 1, *shape), 3) > 0.5).float()
    logits = {
        "constant": torch.full_like(target, 0.3),
        "empty": torch.full_like(target, -200.0),
        "full": torch.full_like(target, 200.0),
        "saturated": 400 * distinct(target.shape, 4).float() - 200,
    }[kind].requires_grad_()
    for options in ({}, {"boundary": "background"}, {"include_essential": True, "filtration": "bothlevels"}):
        loss = BettiMatchingLoss(sigmoid=True, **options)(logits, target)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_nan_in_a_prediction_goes_through_and_spoils_its_own_item_only():
    pred, target = (x.repeat(3, 1, 1, 1) for x in blobs())
    pred[1, 0, 0, 0], pred[2, 0, 0, 0] = float("inf"), float("nan")
    values = BettiMatchingLoss(reduction="none")(pred, target)
    assert torch.isnan(values)[:, 0].tolist() == [False, True, True]
    assert values[0].item() == 2 * 0.1875**2 + 0.5**2
    assert torch.isnan(BettiMatchingLoss()(pred, target))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_a_target_is_refused(value):
    pred, target = (x.repeat(3, 2, 1, 1) for x in blobs())
    target[2, 1, 0, 0] = value
    with pytest.raises(ValueError, match="target holds NaN or infinite values in item 2; expected a mask"):
        BettiMatchingLoss()(pred, target)


def test_an_id_without_a_channel_is_named_with_the_number_of_all_channels():
    ids = torch.tensor([[0.0, 3.0], [1.0, 2.0]])[None, None]
    with pytest.raises(ValueError, match=r"class id 3, but input has 3 channels \(ids 0 to 2\)"):
        BettiMatchingLoss(to_onehot_y=True, softmax=True)(torch.zeros(1, 3, 2, 2), ids)
    ids[..., 0, 1] = float("nan")
    with pytest.raises(ValueError, match="class id nan"):
        BettiMatchingLoss(to_onehot_y=True, softmax=True)(torch.zeros(1, 3, 2, 2), ids)


def test_items_and_classes_are_independent_problems():
    pred, target = distinct((3, 2, 6, 7), 0), (distinct((3, 2, 6, 7), 1) > 0.5).double()
    values = BettiMatchingLoss(True, reduction="none")(pred, target)
    assert values.shape == (3, 2)
    for b, c in np.ndindex(3, 2):
        alone = BettiMatchingLoss()(pred[b, c][None, None], target[b, c][None, None])
        torch.testing.assert_close(values[b, c], alone)
    torch.testing.assert_close(BettiMatchingLoss(reduction="none")(pred, target), values[:, 1:])
    torch.testing.assert_close(BettiMatchingLoss(True, num_threads=1)(pred, target), values.mean())


def test_one_vs_max_is_the_softmax_of_two_and_above_a_half_where_the_class_wins():
    logits = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    values = BettiMatchingLoss(one_vs_max=True)._activate(logits)
    assert ((values > 0.5).float().argmax(1) == logits.argmax(1)).all()
    rest = torch.cat([logits[:, :2], logits[:, 3:]], 1).max(1).values
    torch.testing.assert_close(values[:, 2], torch.stack([logits[:, 2], rest]).softmax(0)[0])


def test_metadata_of_monai_tensors_is_dropped():
    from monai.data import MetaTensor

    pred, target = blobs()
    value = BettiMatchingLoss()(MetaTensor(pred), MetaTensor(target))
    assert type(value) is torch.Tensor
    assert value == BettiMatchingLoss()(pred, target)


def test_values_that_are_no_probabilities_warn_where_it_matters():
    pred, target = blobs()
    BettiMatchingLoss()(pred * 3, target)
    for options in ({"push_unmatched_to_1_0": True}, {"include_essential": True}):
        with pytest.warns(UserWarning, match=r"outside \[0, 1\]"):
            BettiMatchingLoss(**options)(pred * 3, target)


def test_the_batch_is_copied_to_the_host_once(monkeypatch):
    copies = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copies.append(self) or original(self))
    target = torch.zeros(4, 1, 6, 6, dtype=torch.int64)
    BettiMatchingLoss(to_onehot_y=True, softmax=True)(torch.randn(4, 3, 6, 6), target)
    assert len(copies) == 1


def test_descent_from_noise_ends_with_the_topology_of_a_ring():
    from medseg.topology import betti_numbers

    target = torch.zeros(1, 1, 12, 12)
    target[..., 3:9, 3:9] = 1
    target[..., 5:7, 5:7] = 0
    logits = (0.5 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss = BettiMatchingLoss(sigmoid=True, filtration="superlevel", include_essential=True)
    optimizer = torch.optim.Adam([logits], lr=0.2)
    for _ in range(150):
        optimizer.zero_grad()
        loss(logits, target).backward()
        optimizer.step()
    assert betti_numbers((logits[0, 0] > 0).numpy()) == (1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigmoid": True, "softmax": True}, "sigmoid and softmax are both set"),
        ({"softmax": True, "one_vs_max": True}, "softmax and one_vs_max"),
        ({"filtration": "upper"}, "filtration must be one of superlevel, sublevel, bothlevels, got 'upper'"),
        ({"boundary": "sphere"}, "boundary must be one of none, background, foreground"),
        ({"image_bars": "strict"}, "image_bars must be one of all, positive"),
        ({"reduction": "average"}, "reduction must be one of mean, sum, none"),
        ({"topology_weights": [1.0]}, "topology_weights must be two finite numbers"),
        ({"topology_weights": [1.0, -1.0]}, "topology_weights"),
        ({"barcode_length_threshold": -0.1}, "barcode_length_threshold"),
        ({"num_threads": 0}, "num_threads must be at least 1"),
    ],
)
def test_wrong_options_are_named_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        BettiMatchingLoss(**options)


@pytest.mark.parametrize(
    ("options", "shapes", "message"),
    [
        ({}, [(2, 1, 5), (2, 1, 5)], "input must have shape"),
        ({}, [(2, 1, 2, 2, 2, 2)] * 2, "input must have shape"),
        ({}, [(2, 1, 5, 5), (2, 1, 5, 6)], r"target must have shape \(2, 1, 5, 5\)"),
        ({}, [(2, 3, 5, 5), (2, 1, 5, 5)], "to_onehot_y=True"),
        ({"to_onehot_y": True}, [(2, 3, 5, 5), (2, 3, 5, 5)], r"target must have shape \(2, 1, 5, 5\)"),
        ({"softmax": True}, [(2, 1, 5, 5)] * 2, "softmax needs at least two channels"),
        ({"one_vs_max": True}, [(2, 1, 5, 5)] * 2, "one_vs_max needs at least two channels"),
        ({"dims": [2]}, [(2, 1, 5, 5)] * 2, "dims"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(options, shapes, message):
    with pytest.raises(ValueError, match=message):
        BettiMatchingLoss(**options)(*(torch.zeros(shape) for shape in shapes))


def test_other_activations_are_applied_and_must_be_callable():
    pred, target = blobs()
    value = BettiMatchingLoss(other_act=torch.square)(pred, target)
    assert value == BettiMatchingLoss()(pred.square(), target)
    with pytest.raises(TypeError, match="other_act"):
        BettiMatchingLoss(other_act="tanh")


def test_class_ids_of_a_single_channel_are_taken_as_a_mask_with_a_warning():
    pred, target = blobs()
    with pytest.warns(UserWarning, match="to_onehot_y=True ignored"):
        value = BettiMatchingLoss(to_onehot_y=True)(pred, target)
    assert value == BettiMatchingLoss()(pred, target)
