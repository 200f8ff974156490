import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import DynUNet
from torch import nn
from torch.nn.utils import parametrize

from medseg.core.adapters import LowRankUpdate, add_lora, load_lora, lora_state_dict, merge_lora, merged_state_dict
from medseg.inferers.openvino_conversion import convert

HEAD = ["output_block.*"]


def make_unet(seed=0, channels=1):
    torch.manual_seed(seed)
    norm = ("INSTANCE", {"affine": True})
    return DynUNet(3, channels, 3, [3] * 3, [1, 2, 2], [2] * 2, filters=[6, 8, 8], norm_name=norm).eval()


def shake(network, seed=1):
    """Give every trained parameter another value, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


@pytest.fixture
def image():
    return torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(2))


LAYERS = [
    nn.Linear(6, 5),
    nn.Conv1d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, 3, groups=2, stride=2),
    nn.Conv3d(2, 4, (1, 3, 3), dilation=(1, 2, 2)),
    nn.ConvTranspose1d(4, 6, 2, stride=2),
    nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2, output_padding=1),
    nn.ConvTranspose3d(3, 2, 2, stride=2),
]


def input_of(layer):
    if isinstance(layer, nn.Linear):
        return torch.randn(3, layer.in_features)
    return torch.randn(2, layer.in_channels, *[7] * (layer.weight.ndim - 2))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_an_adapted_layer_starts_as_it_was_and_merges_to_what_it_became(layer):
    torch.manual_seed(0)
    x = input_of(layer)
    network = nn.Sequential(copy.deepcopy(layer))
    before = network(x)
    add_lora(network, rank=2)
    assert torch.equal(network(x), before)
    after = shake(network)(x)
    assert not torch.allclose(after, before)
    assert torch.equal(merge_lora(network)(x), after)
    assert type(network[0]) is type(layer)
    assert sorted(network.state_dict()) == ["0.bias", "0.weight"]


def factored(conv, x, update):
    """The update as the paper applies it: two small layers, beside the frozen one."""
    r, d = update.a.shape[0], conv.weight.ndim - 2
    functional = {2: nn.functional.conv2d, 3: nn.functional.conv3d}[d]
    a = update.a.view(r, conv.weight.shape[1], *conv.kernel_size)
    parts = [functional(part, a, None, conv.stride, conv.padding, conv.dilation) for part in x.chunk(conv.groups, 1)]
    rows = update.b.chunk(conv.groups)
    return torch.cat([functional(p, b.view(*b.shape, *[1] * d)) for p, b in zip(parts, rows, strict=True)], 1)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.sampled_from([1, 2]), st.sampled_from([2, 3]), st.integers(1, 2), st.floats(0.5, 8))
def test_the_update_of_a_convolution_is_a_small_convolution_and_one_of_kernel_one(rank, groups, dims, stride, alpha):
    torch.manual_seed(rank)
    kind = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    conv = kind(4, 6, 3, stride=stride, padding=1, groups=groups)
    x = torch.randn(1, 4, *[6] * dims)
    before = conv(x)
    shake(add_lora(conv, rank=rank, alpha=alpha))
    expected = before + alpha / rank * factored(conv, x, conv.parametrizations.weight[0])
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-4)


def test_the_update_of_a_transposed_convolution_is_one_of_kernel_one_and_a_small_transposed_one():
    torch.manual_seed(0)
    conv, x = nn.ConvTranspose3d(4, 3, 2, stride=2), torch.randn(1, 4, 3, 3, 3)
    before = conv(x)
    shake(add_lora(conv, rank=2))
    update = conv.parametrizations.weight[0]
    reduced = nn.functional.conv3d(x, update.b.T.reshape(2, 4, 1, 1, 1))
    added = nn.functional.conv_transpose3d(reduced, update.a.view(2, 3, 2, 2, 2), stride=2)
    torch.testing.assert_close(conv(x), before + added, rtol=1e-4, atol=1e-4)


def test_only_updates_norms_and_the_named_head_get_gradients(image):
    network = add_lora(make_unet(), rank=2, train_fully=HEAD)
    network(image).square().mean().backward()
    trained = {name for name, p in network.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in network.named_parameters() if p.requires_grad}
    for name in trained:
        assert ".0.a" in name or ".0.b" in name or ".norm" in name or name.startswith("output_block.")
    assert {"input_block.conv1.conv.parametrizations.weight.0.b", "output_block.conv.conv.weight"} <= trained


def test_norms_stay_frozen_where_asked():
    network = add_lora(make_unet(), rank=2, train_fully=HEAD, train_norm=False)
    assert not any(p.requires_grad for name, p in network.named_parameters() if ".norm" in name)


def test_a_layer_below_one_that_trains_fully_gets_no_update():
    network = add_lora(make_unet(), rank=4, train_fully=["output_block"])
    assert not parametrize.is_parametrized(network.output_block.conv.conv)
    assert network.output_block.conv.conv.weight.requires_grad


def test_a_saved_file_of_updates_turns_the_base_into_the_fine_tuned_network(image, tmp_path):
    tuned = shake(add_lora(make_unet(), rank=2, alpha=6, train_fully=HEAD))
    torch.save(lora_state_dict(tuned), tmp_path / "site.pt")
    assert (tmp_path / "site.pt").stat().st_size < 40_000
    loaded = load_lora(make_unet(), torch.load(tmp_path / "site.pt", weights_only=True))
    assert torch.equal(loaded(image), tuned(image))
    assert torch.equal(merge_lora(loaded)(image), tuned(image))


def test_a_network_that_is_one_layer_is_saved_and_loaded_as_well():
    tuned, base = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3)
    base.load_state_dict(tuned.state_dict())
    state = lora_state_dict(shake(add_lora(tuned, rank=2)))
    assert torch.equal(load_lora(base, state).weight, tuned.weight)
    assert torch.equal(merged_state_dict(tuned)["weight"], tuned.weight)


def test_the_file_is_smaller_than_the_network():
    network = make_unet()
    size = sum(p.numel() for p in network.parameters())
    assert sum(v.numel() for v in lora_state_dict(add_lora(network, rank=1)).values()) < 0.2 * size


def test_the_merged_state_has_the_names_of_the_plain_network_and_leaves_the_adapted_one_alone(image):
    tuned = shake(add_lora(make_unet(), rank=2))
    before, plain = tuned(image), make_unet(seed=5)
    plain.load_state_dict(merged_state_dict(tuned))
    assert torch.equal(plain(image), before)
    assert torch.equal(tuned(image), before)
    assert len(lora_state_dict(tuned)) > 0
    assert merged_state_dict(plain).keys() == plain.state_dict().keys()


def test_merging_a_copy_leaves_the_network_itself_alone(image):
    tuned = shake(add_lora(make_unet(), rank=2))
    before = tuned(image)
    assert torch.equal(merge_lora(copy.deepcopy(tuned))(image), before)
    assert torch.equal(tuned(image), before)
    assert torch.equal(merge_lora(tuned)(image), before)


def test_training_goes_on_from_a_state_dict(image):
    tuned = shake(add_lora(make_unet(), rank=2))
    again = add_lora(make_unet(seed=3), rank=2)
    again.load_state_dict(tuned.state_dict())
    assert torch.equal(again(image), tuned(image))


def test_a_step_of_an_optimizer_over_all_parameters_moves_only_what_trains(image):
    network = add_lora(make_unet(), rank=2, train_fully=HEAD)
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):  # the gradient of A is zero while B is
        network(image).square().mean().backward()
        optimizer.step()
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert not moved & frozen
    assert any(name.endswith(".0.a") for name in moved)


def test_under_autocast_the_update_keeps_float32_and_gradients_are_finite(image):
    network = shake(add_lora(make_unet(), rank=2))
    with torch.autocast("cpu", torch.bfloat16):
        assert network.input_block.conv1.conv.weight.dtype == torch.float32
        network(image).float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


def test_a_merged_network_exports_and_converts(image, tmp_path):
    layers = nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.ConvTranspose3d(4, 2, 2, stride=2)
    network = merge_lora(shake(add_lora(nn.Sequential(*layers), rank=2))).eval()
    exported = torch.export.export(network, (image,), strict=False)
    torch.testing.assert_close(exported.module()(image), network(image))
    convert(network, image.shape[1:], tmp_path)
    assert (tmp_path / "model.xml").is_file()


def test_a_rank_larger_than_possible_is_refused_before_anything_changes():
    network = make_unet()
    with pytest.raises(ValueError, match=r"'output_block.conv.conv': rank must be from 1 to 3 .* 3 x 6, got 4; lower"):
        add_lora(network, rank=4)
    assert all(p.requires_grad for p in network.parameters())
    assert list(network.state_dict()) == list(make_unet().state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank must be from 1"),
        ({"alpha": 0.0}, "alpha must be above 0, got 0.0"),
        ({"layers": ["encoder.*"]}, r"layers: 'encoder.\*' matches no layer; there are: input_block.conv1.conv"),
        ({"train_fully": ["head"]}, "train_fully: 'head' matches no layer"),
        ({"layers": "input_block.*"}, "layers must be a list of names, got the string"),
    ],
)
def test_wrong_arguments_are_refused_with_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        add_lora(make_unet(), **{"rank": 1, **arguments})


def test_updates_are_not_stacked_merged_twice_or_saved_where_there_are_none():
    network = add_lora(make_unet(), rank=1)
    with pytest.raises(ValueError, match="parametrized weight already"):
        add_lora(network, rank=1)
    state = lora_state_dict(network)
    with pytest.raises(ValueError, match="already; merge_lora"):
        load_lora(network, state)
    merge_lora(network)
    with pytest.raises(ValueError, match="no low-rank updates to merge"):
        merge_lora(network)
    with pytest.raises(ValueError, match="no low-rank updates to save"):
        lora_state_dict(network)


def test_a_state_of_another_network_is_refused_before_anything_changes():
    state = lora_state_dict(add_lora(make_unet(), rank=2))
    other = make_unet(channels=2)
    with pytest.raises(ValueError, match=r"weight.0.a has the shape \(2, 27\), the network needs \(2, 54\)"):
        load_lora(other, state)
    assert not any(parametrize.is_parametrized(m) for m in other.modules())
    with pytest.raises(ValueError, match="which the network lacks"):
        load_lora(nn.Sequential(nn.Conv3d(1, 6, 3)), state)
    with pytest.raises(ValueError, match="holds no low-rank updates"):
        load_lora(make_unet(), make_unet().state_dict())
    with pytest.raises(ValueError, match=r"state lacks .*\.b'"):
        load_lora(make_unet(), {k: v for k, v in state.items() if not k.endswith(".0.b")})


def test_the_start_of_the_first_matrix_is_the_draw_of_kaiming_within_its_bound():
    torch.manual_seed(0)
    update = LowRankUpdate((64, 16, 3, 3, 3), rank=8)
    assert float(update.a.detach().abs().max()) <= 1 / (16 * 27) ** 0.5
    assert float(update.a.detach().std()) == pytest.approx(1 / (3 * 16 * 27) ** 0.5, rel=0.05)
    assert not update.b.any()
