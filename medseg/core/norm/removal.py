"""Remove the layer normalisations of a trained transformer while it is fine-tuned.

One norm after the other, the division by each token's deviation becomes a division by a constant,

    y = (x - mean) / sigma * w + b,      sigma <- m sigma + (1 - m) mean over tokens of sqrt(var + eps)   while live

where sigma stops when the norm's turn comes. Then the norm is an affine map and disappears in the linear layer behind
it:

    W <- W diag(w / sigma) (I - 1 1^T / C),       b <- b + W b_norm

Baroni, Khara, Schaeffer, Subkhankulov, Heimersheim, "Transformers Don't Need LayerNorm at Inference Time" (2025). In
the order of the paper the MLP's norms go first, then those of attention, then the final one; the paper splits attention
further, into the paths of queries and keys and of values, which is not done here. `uniform_std_loss` keeps the
deviations of tokens alike meanwhile (weight 0.1 in the paper). There is no beginning-of-text token in images: the odd
ones out are windows of background and padding, which `mask` leaves out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg.core.norm.feature_norm import FeatureNorm, check_rate, to_full_precision
from medseg.core.norm.layer import check_tokens, scale_channels
from medseg.core.norm.preln import compare_outputs, fold_into_linear
from medseg.core.norm.transformer_parts import block_readers, find_runs, replace_module


class FrozenScaleLayerNorm(FeatureNorm):
    """Layer normalisation whose deviation can be frozen to the average it had.

    Args:
        num_features: channels C.
        channels_last: the channels are the last axis, as in tokens, instead of axis 1.
        momentum: how much of the remembered deviation is kept each step, 0 to 1.
        eps: added to the variance.

    Raises:
        ValueError: the input has another number of channels, or nothing was seen before `freeze`.

    Example:
        >>> layer = FrozenScaleLayerNorm(4)
        >>> x = torch.randn(2, 5, 4)
        >>> _ = layer(x)
        >>> layer.freeze()
        >>> torch.allclose(layer(2 * x), 2 * layer(x), atol=1e-5)
        True
    """

    sigma: Tensor
    frozen: Tensor

    def __init__(self, num_features: int, channels_last: bool = True, momentum: float = 0.9, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps=eps)
        check_rate(momentum, "momentum")
        self.channels_last = channels_last
        self.momentum = momentum
        self.register_buffer("sigma", torch.zeros(()))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., C), or (B, C, spatial...) without `channels_last`."""
        if self.channels_last:
            check_tokens(self, x)
        else:
            self.check_input(x)
        full = to_full_precision(x)
        variance, mean = torch.var_mean(full, -1 if self.channels_last else 1, keepdim=True, correction=0)
        deviation = (variance + self.eps).sqrt()
        if self.training:
            self._remember(deviation.detach().mean())
        y = (full - mean) / torch.where(self.frozen, self.sigma, deviation)
        return scale_channels(y, self.weight, self.bias, self.channels_last).to(x.dtype)

    def freeze(self) -> None:
        """Divide by the remembered deviation from now on."""
        if not bool(self.sigma > 0):
            raise ValueError("no deviation was seen yet; run a few training steps before freezing")
        self.frozen.fill_(True)

    @torch.no_grad()
    def _remember(self, now: Tensor) -> None:
        moved = torch.where(self.sigma == 0, now, self.momentum * self.sigma + (1 - self.momentum) * now)
        self.sigma.copy_(torch.where(self.frozen | ~torch.isfinite(moved), self.sigma, moved))


class NormRemovalSchedule:
    """Freeze one norm of a transformer after the other.

    Building it exchanges every layer normalisation of the transformer blocks, and those named in `order`, for a
    `FrozenScaleLayerNorm`.

    Args:
        model: the network; changed in place.
        order: dotted names of the norms, first to go first; None takes all norm2 in order of depth, then all norm1.
        start: step at which the first goes.
        gap: steps between one and the next.
        momentum: of the remembered deviations.

    Raises:
        ValueError: a name is not that of a layer normalisation.

    Example:
        >>> from monai.networks.nets import ViT
        >>> network = ViT(1, 8, 4, hidden_size=8, mlp_dim=8, num_layers=2, num_heads=2, spatial_dims=2)
        >>> schedule = NormRemovalSchedule(network, start=1, gap=1)
        >>> _ = network(torch.randn(1, 1, 8, 8))
        >>> schedule.step(2)
        ['blocks.0.norm2', 'blocks.1.norm2']
    """

    def __init__(
        self,
        model: nn.Module,
        order: Sequence[str] | None = None,
        start: int = 20,
        gap: int = 2,
        momentum: float = 0.9,
    ) -> None:
        if order is None:
            blocks = [name for run in find_runs(model) for name in run]
            order = [f"{b}.norm2" for b in blocks] + [f"{b}.norm1" for b in blocks]
        if gap < 0 or start < 0:
            raise ValueError(f"start and gap must not be negative, got {start} and {gap}")
        self.model = model
        self.order = list(order)
        self.start = start
        self.gap = gap
        for name in self.order:
            _exchange(model, name, momentum)

    def step(self, number: int) -> list[str]:
        """Freeze the norms whose turn has come.

        Args:
            number: training steps done so far.

        Returns:
            Names of the norms frozen now.
        """
        now = []
        for turn, name in enumerate(self.order):
            layer = self.model.get_submodule(name)
            if number >= self.start + turn * self.gap and not bool(layer.frozen):  # type: ignore[arg-type]
                layer.freeze()  # type: ignore[operator]
                now.append(name)
        return now


def _exchange(model: nn.Module, name: str, momentum: float) -> None:
    old = model.get_submodule(name)
    if isinstance(old, FrozenScaleLayerNorm):
        return
    if not isinstance(old, nn.LayerNorm) or len(old.normalized_shape) != 1:
        raise ValueError(f"{name} must be a LayerNorm over features, got {type(old).__name__}")
    new = FrozenScaleLayerNorm(old.normalized_shape[0], momentum=momentum, eps=old.eps)
    new.load_state_dict(old.state_dict(), strict=False)
    replace_module(model, name, new.to(old.weight.device).train(old.training))


def uniform_std_loss(h: Tensor, mask: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Penalise tokens whose deviation differs from the average one.

    Args:
        h: tokens (B, N, C) before the final norm.
        mask: (B, N), True for the ordinary tokens that make the average; None means all.
        eps: added to the variance.

    Returns:
        Mean over all tokens of (deviation - average)^2, with the average held constant.

    Raises:
        ValueError: the mask has another shape or is empty.

    Example:
        >>> uniform_std_loss(torch.tensor([[[1.0, -1.0], [2.0, -2.0]]])).round(decimals=2).item()
        0.25
    """
    deviation = (h.var(-1, correction=0) + eps).sqrt()
    if mask is None:
        return (deviation - deviation.detach().mean()).square().mean()
    if mask.shape != deviation.shape or not bool(mask.any()):
        raise ValueError(f"mask must be {tuple(deviation.shape)} with a True in it, got {tuple(mask.shape)}")
    return (deviation - deviation.detach()[mask].mean()).square().mean()


def fold_frozen_norms(model: nn.Module, check_input: Tensor | None = None, atol: float = 1e-5) -> tuple[nn.Module, int]:
    """Give a copy of a network whose frozen norms are folded into the linear layers behind them.

    Args:
        model: a network after `NormRemovalSchedule`; stays as it is.
        check_input: an input on which both are compared in evaluation.
        atol: largest difference allowed there, relative to the largest output.

    Returns:
        The copy, and how many norms were folded.

    Raises:
        ValueError: the outputs differ; as they do in a Swin transformer whose windows are padded behind the norm.

    Example:
        >>> from monai.networks.nets import ViT
        >>> network = ViT(1, 8, 4, hidden_size=8, mlp_dim=8, num_layers=1, num_heads=2, spatial_dims=2)
        >>> schedule = NormRemovalSchedule(network, start=0)
        >>> x = torch.randn(1, 1, 8, 8)
        >>> _ = network(x), schedule.step(100)
        >>> fold_frozen_norms(network, x)[1]
        2
    """
    new = copy.deepcopy(model)
    count = 0
    for block in [name for run in find_runs(new) for name in run]:
        for norm_name, readers in block_readers(new, block).items():
            norm = new.get_submodule(norm_name)
            if isinstance(norm, FrozenScaleLayerNorm) and bool(norm.frozen):
                for reader in readers:
                    _fold(new.get_submodule(reader), norm)
                replace_module(new, norm_name, nn.Identity())
                count += 1
    if check_input is not None:
        compare_outputs(model, new, check_input, atol)
    return new, count


@torch.no_grad()
def _fold(linear: nn.Module, norm: FrozenScaleLayerNorm) -> None:
    weight = None if norm.weight is None else norm.weight / norm.sigma
    fold_into_linear(linear, weight, norm.bias)
    values: Tensor = linear.weight  # type: ignore[assignment]
    values.copy_(values - values.mean(1, keepdim=True))
