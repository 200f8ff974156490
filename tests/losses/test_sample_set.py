"""Distances between sets of segmentations: published values, laws, and oracles where they are installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.losses import SampleSetLoss, frechet_distance
from medseg.losses._point_distances import squared_distances
from medseg.losses._transport import find_plan
from tests.losses.sample_set_oracles import golden_files, make_sets, read_golden

SETS = golden_files("distances_*.npz")
FRECHET = golden_files("frechet_*.npz")
KINDS = {
    "energy": {"distance": "energy"},
    "exact": {"distance": "sinkhorn"},
    "sinkhorn": {"distance": "sinkhorn", "solver": "sinkhorn", "blur": 0.5, "extra_steps": 100},
}
ALL_KINDS = pytest.mark.parametrize("options", KINDS.values(), ids=list(KINDS))


def load_sets(name: str, dtype: torch.dtype = torch.float64) -> tuple[dict, torch.Tensor, torch.Tensor]:
    golden = read_golden(SETS[name])
    logits, annotations = golden["logits"].to(dtype)[:, :, None], golden["annotations"].to(dtype)[:, :, None]
    return golden, logits.double().sigmoid().to(dtype), annotations


@pytest.mark.parametrize("name", sorted(SETS))
@pytest.mark.parametrize("blur", ["0p05", "1"])
def test_the_published_schedule_gives_the_values_and_gradients_of_geomloss(name, blur):
    golden, samples, annotations = load_sets(name)
    loss = SampleSetLoss("sinkhorn", solver="sinkhorn", blur=float(blur.replace("p", ".")), reduction="none")
    values = loss(samples.requires_grad_(), annotations)
    torch.testing.assert_close(values, golden[f"sinkhorn_p2_blur{blur}"], rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(values.mean(), samples)
    expected = golden[f"sinkhorn_p2_blur{blur}_grad_wrt_prob"].double()[:, :, None]
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(SETS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_energy_and_exact_transport_have_their_golden_values(name, dtype):
    golden, samples, annotations = load_sets(name, dtype)
    for options, key in (({"distance": "energy"}, "energy_distance"), ({"distance": "sinkhorn"}, "W2_squared")):
        values = SampleSetLoss(**options, reduction="none")(samples, annotations)
        assert values.dtype == dtype
        torch.testing.assert_close(values.double(), golden[f"exact_half_{key}"], rtol=1e-5, atol=0)
    published = SampleSetLoss("hausdorff_energy", reduction="none")(samples, annotations).double()
    torch.testing.assert_close(published, golden["energy_kernel_norm"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", sorted(SETS))
def test_the_energy_distance_has_its_golden_gradient(name):
    golden, samples, annotations = load_sets(name)
    (gradient,) = torch.autograd.grad(SampleSetLoss()(samples.requires_grad_(), annotations), samples)
    expected = golden["energy_kernel_norm_grad_wrt_prob"].double()[:, :, None]
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", sorted(SETS))
@pytest.mark.parametrize("blur", [2.0, 4.0])
def test_with_more_steps_the_sinkhorn_divergence_converges(name, blur):
    golden, samples, annotations = load_sets(name)
    options = {"solver": "sinkhorn", "blur": blur, "extra_steps": 400, "reduction": "none"}
    values = SampleSetLoss("sinkhorn", **options)(samples, annotations)
    torch.testing.assert_close(values, golden[f"sinkhorn_converged_blur{blur:.0f}"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", sorted(FRECHET))
def test_the_frechet_distance_has_its_golden_value_and_gradient(name):
    golden = read_golden(FRECHET[name])
    value = frechet_distance(golden["act_pred"].requires_grad_(), golden["act_true"])
    torch.testing.assert_close(value, golden["frechet_scipy_sqrtm"], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(value, golden["act_pred"])
    torch.testing.assert_close(gradient, golden["grad_act_pred"], rtol=1e-4, atol=1e-6)


def test_the_frechet_loss_takes_the_features_of_all_items_that_exist():
    samples, annotations = make_sets(3, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]])
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    value = SampleSetLoss("frechet", feature_net=net)(samples, annotations, annotation_mask=mask)
    torch.testing.assert_close(value, frechet_distance(net(samples.flatten(0, 1)), net(annotations[mask.bool()])))
    voxels = SampleSetLoss("frechet")(samples, annotations)
    assert torch.isfinite(voxels)
    assert voxels > 0
    assert SampleSetLoss("frechet")(samples, samples).abs() < 1e-9


@ALL_KINDS
@pytest.mark.parametrize("dims", [2, 3])
def test_a_set_has_no_distance_to_itself_in_whatever_order_and_however_often_listed(options, dims):
    samples, annotations = make_sets(3, 5, dims)
    loss = SampleSetLoss(**options)
    value = loss(samples, annotations)
    assert value > 0
    assert loss(annotations, annotations).abs() < 1e-9
    torch.testing.assert_close(loss(annotations, samples), value)
    torch.testing.assert_close(loss(samples[:, [2, 0, 1]], annotations.flip(1)), value)
    torch.testing.assert_close(loss(samples.repeat(1, 2, 1, 1, *(1,) * (dims - 1)), annotations), value)


@ALL_KINDS
@pytest.mark.parametrize(("n", "m"), [(1, 2), (3, 3), (3, 4)])
def test_gradients_are_exact(options, n, m):
    samples, annotations = (x[:1, ..., :3, :2].clone() for x in make_sets(n, m))
    # Exact at the fixed point of the iteration only: the slope of its potentials is dropped.
    options = {**options, "extra_steps": 40, "blur": 1.0} if "solver" in options else options
    loss = SampleSetLoss(**options, reduction="none")
    assert torch.autograd.gradcheck(lambda x: loss(x, annotations), (samples.requires_grad_(),))


@ALL_KINDS
@pytest.mark.parametrize("annotation_count", [2, 3])
def test_identical_samples_have_finite_gradients(options, annotation_count):
    _, annotations = make_sets(1, annotation_count)
    annotations[:, 1] = annotations[:, 0]
    samples = annotations[:, :1].repeat(1, 3, 1, 1, 1).requires_grad_()
    for distance in (options, {"distance": "frechet"}):
        (gradient,) = torch.autograd.grad(SampleSetLoss(**distance)(samples, annotations), samples)
        assert gradient.isfinite().all()


@ALL_KINDS
def test_single_points_have_closed_forms(options):
    samples, annotations = make_sets(1, 1)
    length = (samples - annotations).flatten(1).norm(dim=1)
    expected = length if options["distance"] == "energy" else length**2 / 2
    with pytest.warns(UserWarning, match="one annotation of each image"):
        values = SampleSetLoss(**options, reduction="none")(samples, annotations)
    torch.testing.assert_close(values, expected)


@ALL_KINDS
def test_a_missing_annotation_counts_for_nothing_whatever_it_holds(options):
    samples, annotations = make_sets(3, 4)
    mask = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 1]]).bool()
    without = SampleSetLoss(**options)(samples.requires_grad_(), annotations[:, [0, 1, 3]])
    (expected,) = torch.autograd.grad(without, samples)
    annotations[:, 2] = torch.nan
    value = SampleSetLoss(**options)(samples, annotations, annotation_mask=mask)
    torch.testing.assert_close(value, without)
    torch.testing.assert_close(torch.autograd.grad(value, samples)[0], expected)


@ALL_KINDS
def test_a_weight_of_two_is_an_annotation_listed_twice(options):
    samples, annotations = make_sets(3, 2)
    weights = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    value = SampleSetLoss(**options)(samples, annotations, annotation_weights=weights)
    torch.testing.assert_close(value, SampleSetLoss(**options)(samples, annotations[:, [0, 0, 1]]))
    swapped = SampleSetLoss(**options)(annotations, samples, sample_weights=weights)
    torch.testing.assert_close(swapped, value)


@ALL_KINDS
def test_normalised_distances_do_not_depend_on_the_size_of_the_image(options):
    samples, annotations = make_sets(3, 4)
    loss = SampleSetLoss(**options, normalize=True)
    enlarged = [x.repeat_interleave(2, 3).repeat_interleave(2, 4) for x in (samples, annotations)]
    torch.testing.assert_close(loss(*enlarged), loss(samples, annotations))


@ALL_KINDS
def test_autocast_and_half_precision_do_not_touch_the_distance_of_large_masks(options):
    samples = torch.zeros(1, 3, 1, 300, 300)
    annotations = torch.ones(1, 3, 1, 300, 300)  # 90000 disagreeing voxels, more than half precision can count
    annotations[:, 1, :, :100] = 0
    expected = SampleSetLoss(**options)(samples, annotations)
    assert expected.isfinite()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(SampleSetLoss(**options)(samples, annotations), expected)
    assert torch.equal(SampleSetLoss(**options)(samples.half(), annotations.half()), expected)


def test_distances_of_whole_volumes_are_exact_in_float32():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(1, 3, 200_000, generator=generator)
    near = points + 1e-4 * torch.rand(1, 3, 200_000, generator=generator)
    found = squared_distances(points, near)
    expected = (points.double()[:, :, None] - near.double()[:, None]).square().sum(-1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_no_step_holds_a_voxel_for_each_pair():
    n, voxels = 8, 1 << 16
    samples = torch.rand(1, n, voxels, requires_grad=True)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        squared_distances(samples, samples.detach()).sum().backward()
    largest = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert largest < 4 * n * n * voxels / 2


def test_exact_plans_cost_as_little_as_those_of_pot():
    ot = pytest.importorskip("ot", reason="POT, the oracle for exact transport, is not installed")
    random = np.random.default_rng(0)
    for n, m, uniform in ((5, 5, True), (10, 10, True), (4, 7, True), (6, 6, False), (3, 8, False)):
        cost = 1000 * random.random((n, m))
        a, b = (np.full(k, 1 / k) if uniform else random.dirichlet(np.ones(k)) for k in (n, m))
        plan = find_plan(cost, a, b)
        np.testing.assert_allclose(plan.sum(1), a, atol=1e-9)
        np.testing.assert_allclose((plan * cost).sum(), ot.emd2(a, b, cost), rtol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(2, 4), st.integers(0, 10_000))
def test_the_energy_distance_is_never_negative_and_transport_never_below_the_distance_of_means(n, m, seed):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.rand(1, n, 1, 3, 3, generator=generator, dtype=torch.float64)
    annotations = torch.rand(1, m, 1, 3, 3, generator=generator, dtype=torch.float64)
    assert SampleSetLoss()(samples, annotations) >= -1e-12
    apart = (samples.mean(1) - annotations.mean(1)).square().sum() / 2
    assert SampleSetLoss("sinkhorn")(samples, annotations) >= apart - 1e-12
    wide = SampleSetLoss("sinkhorn", solver="sinkhorn", blur=300.0)(samples, annotations)
    torch.testing.assert_close(wide, apart, rtol=1e-3, atol=1e-5)


def test_class_ids_and_background_count_as_in_other_losses():
    samples, _ = make_sets(2, 3, channels=3)
    ids = torch.randint(0, 3, (2, 3, 1, 6, 5))
    one_hot = torch.cat([ids == c for c in range(3)], dim=2).double()
    value = SampleSetLoss(to_onehot_y=True, include_background=False)(samples, ids)
    torch.testing.assert_close(value, SampleSetLoss()(samples[:, :, 1:], one_hot[:, :, 1:]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, y: SampleSetLoss()(s[0], y), r"samples must have shape \(B, N, C, H, W\) or"),
        (lambda s, y: SampleSetLoss()(s, y[..., 1:]), r"annotations must have shape \(2, 'M', 1, 6, 5\)"),
        (lambda s, y: SampleSetLoss()(s[:, :0], y), "at least one segmentation of each image, got 0 and 4"),
        (lambda s, y: SampleSetLoss()(s, y, annotation_mask=torch.zeros(2, 4)), "annotation_mask leaves item 0"),
        (lambda s, y: SampleSetLoss()(s, y, annotation_mask=torch.ones(2, 3)), r"must have shape \(2, 4\)"),
        (lambda s, y: SampleSetLoss()(s, y, sample_weights=torch.zeros(2, 3)), "sample_weights must be finite"),
        (lambda s, y: SampleSetLoss()(s, y, annotation_weights=torch.ones(4)), r"must have shape \(2, 4\), got \(4,\)"),
        (lambda s, y: SampleSetLoss("frechet")(s, y, sample_weights=torch.ones(2, 3)), "no effect on frechet"),
        (lambda s, y: SampleSetLoss("frechet")(s[:1, :1], y[:1]), "n and m at least 2"),
        (lambda s, y: SampleSetLoss("frechet", feature_net=torch.nn.Identity())(s, y), "feature_net must turn"),
        (lambda s, y: SampleSetLoss("euclid"), "distance must be one of energy, sinkhorn, frechet, got 'euclid'"),
        (lambda s, y: SampleSetLoss(solver="greedy"), "solver must be one of exact, sinkhorn, got 'greedy'"),
        (lambda s, y: SampleSetLoss(blur=0.0), "blur must be a finite number above 0, got 0"),
        (lambda s, y: SampleSetLoss(scaling=1.0), r"scaling must be in \(0, 1\), got 1"),
        (lambda s, y: SampleSetLoss(extra_steps=-1), "extra_steps must be at least 0, got -1"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*make_sets(3, 4))
