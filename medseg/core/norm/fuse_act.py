"""Put normalisation and activation of an existing network into one layer, without changing what it computes.

Known are a norm with an activation right behind it in an `nn.Sequential` (MONAI's `ADN` in UNet, BasicUNet and others,
nnU-Net's `ConvDropoutNormReLU`), and MONAI's blocks of DynUNet, UNETR, SwinUNETR and SegResNet, whose one activation
serves several norms. In a residual block of DynUNet the addition is taken into the second norm as well. Names of
parameters stay, so weights go both ways. Outputs and gradients are those of before to rounding.

What is saved is passes over memory, and with channels_last_3d two copies of it. On a CPU, where convolutions take
nearly all of a training step, no gain stands out of the noise (`benchmarks/README.md`): this is for GPUs, where it is
not measured yet. A compiled network (`torch.compile`) fuses these steps on its own and sees the kernel as one closed
operation: leave it as it is.
"""

from __future__ import annotations

from itertools import pairwise

from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from monai.networks.blocks.segresnet_block import ResBlock
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from medseg.core.norm.norm_act import GroupNormAct, InstanceNormAct

# Blocks that call one activation right behind each of two norms, and nowhere else.
_BLOCKS: dict[type[nn.Module], str] = {UnetBasicBlock: "lrelu", ResBlock: "act"}


def fuse_norm_act(model: nn.Module) -> int:
    """Replace instance or group norms and the ReLU, LeakyReLU or SiLU behind them by one layer, in place.

    Args:
        model: the network; changed in place, with the same keys in its `state_dict`.

    Returns:
        How many norms were replaced.

    Raises:
        ValueError: nothing was found to replace.

    Example:
        >>> from monai.networks.nets import UNet
        >>> network = UNet(3, 1, 2, channels=(4, 8), strides=(2,), act="relu")
        >>> fuse_norm_act(network)
        2
    """
    before = _count(model)
    layers: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            _fuse_sequence(module, layers)
        elif type(module) in _BLOCKS:
            _fuse_block(module, _BLOCKS[type(module)], layers)
        elif type(module) is UnetResBlock and (norms := _fuse_all(module)) is not None:
            layers[module] = FusedResBlock(module, norms)
    if not layers:
        raise ValueError(
            f"found no instance or group norm with a ReLU, LeakyReLU or SiLU behind it in {type(model).__name__}; fuse "
            "before other conversions, and leave networks with batch norm as they are"
        )
    if model in layers:
        raise ValueError("model is itself a residual block, which has to be exchanged; give the network that holds it")
    # A layer may be known by several names, as in nnU-Net's blocks; it stays one.
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in layers:
                setattr(parent, name, layers[child])
    return _count(model) - before


class FusedResBlock(nn.Module):
    """MONAI's `UnetResBlock` with activations and addition inside its norms; names of parameters are the same."""

    def __init__(self, block: UnetResBlock, norms: dict[str, GroupNormAct]) -> None:
        super().__init__()
        self.conv1, self.conv2 = block.conv1, block.conv2
        self.norm1, self.norm2 = norms["norm1"], norms["norm2"]
        self.downsample = block.downsample
        if block.downsample:
            self.conv3, self.norm3 = block.conv3, norms["norm3"]
        self.train(block.training)

    def forward(self, inp: Tensor) -> Tensor:
        """Compute what `UnetResBlock` computes."""
        shortcut = self.norm3(self.conv3(inp)) if self.downsample else inp
        return self.norm2(self.conv2(self.norm1(self.conv1(inp))), shortcut)


def _fuse_sequence(sequence: nn.Sequential, layers: dict[nn.Module, nn.Module]) -> None:
    names = [name for name, child in sequence._modules.items() if not _does_nothing(child)]
    for first, second in pairwise(names):
        norm, act = sequence._modules[first], sequence._modules[second]
        if norm is not None and (fused := _fuse(norm, act)) is not None:
            layers.setdefault(norm, fused)
            sequence._modules[second] = nn.Identity()  # here alone: the activation may serve elsewhere as well


def _fuse_block(block: nn.Module, act: str, layers: dict[nn.Module, nn.Module]) -> None:
    norms = [block.get_submodule(name) for name in ("norm1", "norm2")]
    fused = [_fuse(norm, block.get_submodule(act)) for norm in norms]
    if None not in fused:
        layers.update(zip(norms, fused, strict=True))  # type: ignore[arg-type]
        setattr(block, act, nn.Identity())


def _fuse_all(block: UnetResBlock) -> dict[str, GroupNormAct] | None:
    acts = {"norm1": block.lrelu, "norm2": block.lrelu} | ({"norm3": nn.Identity()} if block.downsample else {})
    fused = {name: _fuse(block.get_submodule(name), act) for name, act in acts.items()}
    return None if None in fused.values() else {name: norm for name, norm in fused.items() if norm is not None}


def _fuse(norm: nn.Module, act: nn.Module | None) -> GroupNormAct | None:
    """One layer with the norm's parameters, or None where the two cannot be joined."""
    choice = _describe(act)
    if choice is None or norm._forward_hooks or (act is not None and act._forward_hooks):
        return None
    if isinstance(norm, _InstanceNorm) and norm.running_mean is None and norm.num_features > 0:
        fused = InstanceNormAct(norm.num_features, *choice, eps=norm.eps, affine=norm.affine)
    elif type(norm) is nn.GroupNorm:
        fused = GroupNormAct(norm.num_channels, norm.num_groups, *choice, eps=norm.eps, affine=norm.affine)
    else:
        return None
    fused.weight, fused.bias = norm.weight, norm.bias  # the same objects: an optimizer may hold them already
    return fused.train(norm.training)


def _does_nothing(module: nn.Module | None) -> bool:
    """Whether this is a dropout that drops nothing, as MONAI's UNet has by default between norm and activation."""
    return isinstance(module, _DropoutNd) and module.p == 0


def _describe(act: nn.Module | None) -> tuple[str, float] | None:
    if type(act) is nn.LeakyReLU:
        return "leaky_relu", act.negative_slope
    return {nn.ReLU: ("relu", 0.0), nn.SiLU: ("silu", 0.0), nn.Identity: ("none", 0.0)}.get(type(act))  # type: ignore[call-overload]


def _count(model: nn.Module) -> int:
    return sum(isinstance(module, GroupNormAct) for module in model.modules())
