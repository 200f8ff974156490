"""Tests of `medseg.losses.mip`: golden values, the laws of projections, and odd inputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.losses import DiceLoss

from medseg.losses import FocalTverskyLoss, MIPLoss

LOCAL = Path(__file__).parents[1] / "golden" / "mip_loss"
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "mip_loss"
FILES = {path.name: path for folder in (SHARED, LOCAL) for path in sorted(folder.glob("*.npz"))}
APART = ("deep_supervision.npz", "edge_cases.npz", "ties_projection.npz")
CASES = [name for name in FILES if name not in APART]
SHAPE = (4, 5, 6)


def load(name: str, dtype: torch.dtype) -> tuple[dict[str, np.ndarray], torch.Tensor, torch.Tensor]:
    with np.load(FILES[name]) as file:
        golden = dict(file)
    logits = torch.from_numpy(golden["logits"]).to(dtype).requires_grad_()
    return golden, logits, torch.from_numpy(golden["target"])


def options(golden: dict[str, np.ndarray]) -> dict[str, object]:
    meta = json.loads(str(golden["meta"]))
    return {"base_loss": meta["base"], "slab_thickness": meta["slab"], meta["act"]: True}


def given_mips(golden: dict[str, np.ndarray], axes: list[int]) -> dict[int, torch.Tensor]:
    keys = {axis: f"target_mip_axis{axis}" for axis in axes}
    return {axis: torch.from_numpy(golden[key]) for axis, key in keys.items() if key in golden}


def distinct(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """Probabilities (1, 1, spatial...) that no two voxels share."""
    count = int(np.prod(shape))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return ((order.double() + 1) / (count + 1)).reshape(1, 1, *shape)


def line() -> torch.Tensor:
    """A line along the last axis of a volume whose extents differ."""
    label = torch.zeros(1, 1, *SHAPE)
    label[..., 2, 3, :] = 1
    return label


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_the_golden_ones(name, dtype, rtol):
    golden, logits, target = load(name, dtype)
    every = list(range(logits.ndim - 2))
    wanted = {f"axis{a}": {"axes": [a]} for a in every}
    wanted |= {"mean_axes": {"axes": every}, "sum_axes": {"axes": every, "axis_reduction": "sum"}}
    for key, more in wanted.items():
        loss = MIPLoss(**options(golden), **more)(logits, target, given_mips(golden, more["axes"]))
        assert loss.item() == pytest.approx(golden[f"loss_{key}"].item(), rel=rtol)
        if f"grad_{key}" in golden:
            expected = golden[f"grad_{key}"]
            (found,) = torch.autograd.grad(loss, logits)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("ties", ["first", "even"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_gradient_of_ties_is_the_golden_one(ties, axis):
    golden = dict(np.load(FILES["ties_projection.npz"]))
    volume = torch.from_numpy(golden["logits"]).double().requires_grad_()
    weight = torch.from_numpy(golden[f"cotangent_axis{axis}"]).unsqueeze(axis + 2)
    loss = MIPLoss([axis], lambda p, y: (p * weight).sum(), ties=ties)
    (gradient,) = torch.autograd.grad(loss(volume, torch.zeros_like(volume)), volume)
    np.testing.assert_allclose(gradient, golden[f"grad_{ties}_axis{axis}"], rtol=1e-12)


@pytest.mark.parametrize("base", ["focal_tversky", "dice"])
def test_a_perfect_prediction_costs_nothing_along_any_axis(base):
    for axis in range(3):
        assert MIPLoss([axis], base)(line(), line()) == 0


def test_a_gap_costs_more_in_projections_than_in_voxels():
    broken = line()
    broken[..., 2:4] = 0
    assert MIPLoss()(broken, line()) > 0
    assert MIPLoss([0, 1])(broken, line()) >= FocalTverskyLoss()(broken, line())


def test_only_voxels_that_show_get_a_gradient():
    p = distinct().requires_grad_()
    (gradient,) = torch.autograd.grad(MIPLoss()(p, line().double()), p)
    assert 0 < (gradient != 0).sum() <= 5 * 6 + 4 * 6 + 4 * 5
    hidden = p.detach() * torch.where(gradient == 0, 0.5, 1.0)
    assert MIPLoss()(hidden, line().double()) == MIPLoss()(p, line().double())


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.permutations([0, 1, 2]))
def test_permuting_the_volume_permutes_the_losses_of_the_axes(seed, order):
    p, y = distinct(seed), (distinct(seed + 1) > 0.8).double()
    moved = [x.permute(0, 1, *(axis + 2 for axis in order)) for x in (p, y)]
    for position, axis in enumerate(order):
        torch.testing.assert_close(MIPLoss([position])(*moved), MIPLoss([axis])(p, y))
    torch.testing.assert_close(MIPLoss()(p.flip(order[0] + 2), y.flip(order[0] + 2)), MIPLoss()(p, y))


def test_slabs_lie_between_voxels_and_full_projections():
    p, y = distinct(), (distinct(1) > 0.8).double()
    torch.testing.assert_close(MIPLoss(slab_thickness=1)(p, y), FocalTverskyLoss()(p, y))
    for thick in (6, 99, [4, 5, None]):
        torch.testing.assert_close(MIPLoss(slab_thickness=thick)(p, y), MIPLoss()(p, y))
    torch.testing.assert_close(MIPLoss([2], slab_thickness=4, ties="even")(p, y), MIPLoss([2], slab_thickness=4)(p, y))


@pytest.mark.parametrize("base", ["focal_tversky", "dice", "bce"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_gradient_is_exact_for_every_base_loss(base, activation):
    x = (distinct(shape=(3, 4, 5)).reshape(1, 2, 3, 2, 5) * 4 - 2).requires_grad_()
    y = (distinct(1, (3, 4, 5)) > 0.7).double().reshape(x.shape)
    loss = MIPLoss(base_loss=base, slab_thickness=[2, None, 3], axis_weights=[1.0, 2.0, 0.5], **{activation: True})
    assert torch.autograd.gradcheck(lambda x: loss(x, y), (x,))


@pytest.mark.parametrize("ties", ["first", "even"])
@pytest.mark.parametrize("base", ["focal_tversky", "dice", "bce"])
def test_a_constant_output_trains(base, ties):
    x = torch.zeros(1, 1, *SHAPE, requires_grad=True)
    loss = MIPLoss(base_loss=base, sigmoid=True, ties=ties)
    (gradient,) = torch.autograd.grad(loss(x, line()), x)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    assert loss(x - gradient, line()) < loss(x, line())


def test_the_base_loss_can_be_an_object_with_options_of_its_own():
    p, y = distinct().float(), line()
    own = MIPLoss(base_loss=FocalTverskyLoss(gamma=1.0, reduction="none"), reduction="none")(p, y)
    assert own.shape == (1, 1)
    assert own.item() != MIPLoss()(p, y).item()
    dice = DiceLoss(smooth_nr=1, smooth_dr=1)
    torch.testing.assert_close(MIPLoss(base_loss=dice)(p, y), MIPLoss(base_loss="dice")(p, y))
    with pytest.raises(ValueError, match=r"base_loss gets probabilities .* sigmoid"):
        MIPLoss(base_loss=DiceLoss(sigmoid=True))
    with pytest.raises(TypeError, match="base_loss must be a name or a loss object, got int"):
        MIPLoss(base_loss=3)


def test_a_bundle_names_the_base_loss_by_its_target():
    base = {"_target_": "medseg.losses.FocalTverskyLoss", "gamma": 1.0}
    config = {"loss": {"_target_": "medseg.losses.MIPLoss", "base_loss": base, "axes": [0, 2], "sigmoid": True}}
    loss = ConfigParser(json.loads(json.dumps(config))).get_parsed_content("loss")
    assert loss.base_loss.gamma == 1
    assert loss(torch.zeros(1, 1, *SHAPE), line()).isfinite()


def test_cross_entropy_of_probabilities_is_that_of_logits():
    x, y = distinct() * 4 - 2, line().double()
    with_logits = MIPLoss(base_loss="bce", sigmoid=True)(x, y)
    torch.testing.assert_close(MIPLoss(base_loss="bce")(x.sigmoid(), y), with_logits)
    assert MIPLoss(base_loss="bce")(torch.ones_like(y), y).isfinite()


def test_weights_of_axes_make_a_mean_or_a_sum():
    p, y = distinct(), line().double()
    each = [MIPLoss([a])(p, y) for a in range(3)]
    weighted = each[0] + 3 * each[1]
    torch.testing.assert_close(MIPLoss(axis_weights=[1, 3, 0])(p, y), weighted / 4)
    torch.testing.assert_close(MIPLoss(axis_weights=[1, 3, 0], axis_reduction="sum")(p, y), weighted)


def test_given_projections_replace_the_target_in_any_of_their_shapes():
    p, y = distinct(), (distinct(1) > 0.8).double()
    mips = {a: y.amax(a + 2) for a in range(3)}
    expected = MIPLoss()(p, y)
    torch.testing.assert_close(MIPLoss()(p, target_mips=mips), expected)
    torch.testing.assert_close(
        MIPLoss()(p, torch.zeros_like(y), {a: m.unsqueeze(a + 2) for a, m in mips.items()}), expected
    )
    whole = {a: m.unsqueeze(a + 2).expand(y.shape) for a, m in mips.items()}
    torch.testing.assert_close(MIPLoss()(p, y, whole), expected)
    with pytest.raises(ValueError, match=r"target_mips lacks axes \[2\]"):
        MIPLoss()(p, target_mips={0: mips[0], 1: mips[1]})
    with pytest.raises(ValueError, match=r"target_mips has projections along \[2\]"):
        MIPLoss([0, 1])(p, y, mips)
    with pytest.raises(ValueError, match="along axis 0 must have shape"):
        MIPLoss()(p, y, {0: mips[1]})


@pytest.mark.parametrize("base", ["focal_tversky", "dice", "bce"])
def test_masked_pixels_do_not_count(base):
    p, y = distinct(), (distinct(1) > 0.8).double()
    mask = torch.ones(1, 1, 5, 6)
    mask[..., 3:] = 0
    found = MIPLoss([0], base)(p, y, mip_mask={0: mask})
    torch.testing.assert_close(found, MIPLoss([0], base)(p[..., :3], y[..., :3]))
    assert MIPLoss([0], base)(p, y, mip_mask={0: torch.zeros_like(mask)}) == 0


def test_a_multi_class_label_without_background_counts_its_classes_alone():
    logits = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(0, 3, (2, 1, *SHAPE), generator=torch.Generator().manual_seed(1))
    flags = {"softmax": True, "to_onehot_y": True, "reduction": "none"}
    foreground = MIPLoss(**flags, include_background=False)(logits, ids)
    torch.testing.assert_close(foreground, MIPLoss(**flags)(logits, ids)[:, 1:])
    mips = {a: (ids == torch.arange(3).view(1, 3, 1, 1, 1)).amax(a + 2) for a in range(3)}
    given = MIPLoss(softmax=True, include_background=False, reduction="none")(logits, target_mips=mips)
    torch.testing.assert_close(given, foreground)


def test_wrong_options_are_named_at_once():
    for wrong, message in [
        ({"axes": [0, 0]}, "axes must be different"),
        ({"axes": [3]}, "axes must be different"),
        ({"axes": []}, "axes must be different"),
        ({"base_loss": "iou"}, "base_loss must be one of focal_tversky, dice, bce"),
        ({"slab_thickness": 0}, "slab_thickness must be whole numbers"),
        ({"slab_thickness": [2], "axes": [0, 1]}, "slab_thickness must have one entry"),
        ({"ties": "last"}, "ties must be one of"),
        ({"axis_weights": [0, 0, 0]}, "axis_weights must be finite"),
        ({"axis_weights": [1], "axes": [0, 1]}, "axis_weights must have one entry"),
        ({"axis_reduction": "max"}, "axis_reduction must be one of"),
        ({"reduction": "max"}, "reduction must be one of"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
        ({"backend": "triton", "ties": "even"}, "ties to the first voxel"),
        ({"sigmoid": True, "softmax": True}, "sigmoid and softmax"),
    ]:
        with pytest.raises(ValueError, match=message):
            MIPLoss(**wrong)


def test_wrong_inputs_are_named():
    for loss, input, target, message in [
        (MIPLoss(), line().int(), line(), "input must hold logits or probabilities"),
        (MIPLoss(), line(), line()[..., 1:], "target must have shape"),
        (MIPLoss(softmax=True), line(), line(), "softmax needs at least two channels"),
        (MIPLoss([2]), line()[:, :, 0], line()[:, :, 0], r"axes has \[2\], but input has spatial axes \[0, 1\]"),
        (MIPLoss(axis_weights=[1, 2, 3]), line()[:, :, 0], line()[:, :, 0], "need one entry for each of the axes"),
        (MIPLoss(), line()[0, 0], line()[0, 0], "input must have shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            loss(input, target)
