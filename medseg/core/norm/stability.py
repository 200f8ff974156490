"""Signs of a training that is about to diverge, and two remedies: normalised queries and keys, and the z-loss.

    attention logits that grow (from about 1e4 on the softmax is one-hot and learns nothing)
    gradients so small (below Adam's epsilon) that a layer's updates vanish, or activations that grow

    QK-norm     layer normalisation (with scale, without shift) of queries and keys over the head's features
    z-loss      weight * mean of log(sum over classes exp(logit))^2
    sensitivity mean over learning rates of min(loss, loss at the start) - best loss

Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities" (ICLR 2024). Nothing is read
from the device before `read`. `medseg.engines.StabilityMonitor` is the handler of a trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor, nn

LOGIT_ALARM = 1e4
_TOKENS = 256  # of one item and head; enough for a maximum that warns


def z_loss(logits: Tensor, weight: float = 1e-4, dim: int = 1, mask: Tensor | None = None) -> Tensor:
    """Penalise logits whose normaliser drifts away from 1.

    Args:
        logits: (B, C, spatial...).
        weight: factor.
        dim: axis of the classes.
        mask: voxels that count, of the shape of the logits without `dim`; None means all.

    Returns:
        weight * mean of the squared log-sum-exp.

    Raises:
        ValueError: the mask has another shape or no voxel.

    Example:
        >>> round(z_loss(torch.zeros(1, 2, 4), weight=1.0).item(), 4)
        0.4805
    """
    square = logits.float().logsumexp(dim).square() if logits.dtype != torch.float64 else logits.logsumexp(dim).square()
    if mask is None:
        return weight * square.mean()
    if mask.shape != square.shape or not bool(mask.any()):
        raise ValueError(f"mask must be {tuple(square.shape)} with a voxel that counts, got {tuple(mask.shape)}")
    return weight * square[mask.bool()].mean()


def lr_sensitivity(losses: Sequence[float], init_loss: float) -> float:
    """Say how much the final loss depends on the learning rate.

    Args:
        losses: final losses for learning rates evenly spaced in the logarithm; nan or inf where training diverged.
        init_loss: loss before training, which stands for runs that diverged.

    Returns:
        Mean of min(loss, init_loss) - the best; 0 where every rate does as well.

    Raises:
        ValueError: there are no losses.

    Example:
        >>> lr_sensitivity([1.0, 0.5, float("inf")], init_loss=2.5)
        0.8333333333333333
    """
    if not losses:
        raise ValueError("losses must hold one number for each learning rate, got none")
    bounded = [min(loss, init_loss) if loss == loss else init_loss for loss in losses]
    return sum(bounded) / len(bounded) - min(bounded)


def add_qk_norm(model: nn.Module) -> int:
    """Normalise the queries and keys of every attention layer of a network, in place.

    Knows MONAI's `SABlock` (ViT, UNETR; with combined projections, its default) and `WindowAttention` (SwinUNETR).

    Args:
        model: the network.

    Returns:
        How many attention layers there are.

    Raises:
        ValueError: there is none, or they are normalised already.

    Example:
        >>> from monai.networks.nets import ViT
        >>> add_qk_norm(ViT(1, 8, 4, hidden_size=8, mlp_dim=8, num_layers=2, num_heads=2, spatial_dims=2))
        2
    """
    layers = [m for _, m in _find_attention(model)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no SABlock with combined projections and no WindowAttention")
    for layer in layers:
        if hasattr(layer.qkv, "query_norm"):
            raise ValueError("queries and keys are normalised already")
        size = layer.qkv.out_features // 3 // layer.num_heads  # type: ignore[operator,union-attr]
        layer.qkv.num_heads = layer.num_heads
        layer.qkv.query_norm = nn.LayerNorm(size, bias=False).to(layer.qkv.weight)  # type: ignore[call-overload]
        layer.qkv.key_norm = nn.LayerNorm(size, bias=False).to(layer.qkv.weight)  # type: ignore[call-overload]
        layer.qkv.register_forward_hook(_normalise_qk)
    return len(layers)


# A function of the module rather than a closure, so that networks can be copied and pickled.
def _normalise_qk(module: Any, _: Any, output: Tensor) -> Tensor:
    q, k, v = _split(output, module.num_heads).unbind(-3)
    return torch.stack([module.query_norm(q), module.key_norm(k), v], -3).reshape(output.shape)


def _split(qkv: Tensor, heads: int) -> Tensor:
    """(..., 3 * heads * d) as (..., 3, heads, d), the layout of both kinds of attention."""
    return qkv.reshape(*qkv.shape[:-1], 3, heads, -1)


def _find_attention(model: nn.Module) -> list[tuple[str, Any]]:
    kinds = (SABlock, WindowAttention)
    return [(n, m) for n, m in model.named_modules() if isinstance(m, kinds) and isinstance(m.qkv, nn.Linear)]


class StabilityProbe:
    """Root mean squares of activations, gradients and weights of each layer, and the largest attention logit.

    Use it as a context around forward, backward and `read`; hooks live as long as the context. Attention logits are
    those of the first item, its first head and at most 256 tokens.

    Args:
        model: the network.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2))
        >>> with StabilityProbe(network) as probe:
        ...     network(torch.ones(1, 2)).sum().backward()
        ...     found = probe.read()
        >>> sorted(found), sorted(found["gradient_rms"])
        (['activation_rms', 'gradient_rms', 'max_logit', 'weight_rms'], ['0'])
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._activations: dict[str, Tensor] = {}
        self._logits: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> StabilityProbe:
        """Begin to listen."""
        for name, module in self.model.named_modules():
            if not list(module.children()) and list(module.parameters(recurse=False)):
                self._handles.append(module.register_forward_hook(self._listen(name)))
        for name, layer in _find_attention(self.model):
            self._handles.append(layer.qkv.register_forward_hook(self._watch(name, layer.num_heads)))
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def read(self) -> dict[str, dict[str, float]]:
        """Give what was seen since the context began, by layer; gradients are those that parameters hold now."""
        gradients, weights = {}, {}
        for name, module in self.model.named_modules():
            own = list(module.parameters(recurse=False))
            if own:
                weights[name] = _rms(own)
                if found := [p.grad for p in own if p.grad is not None]:
                    gradients[name] = _rms(found)
        groups = {
            "activation_rms": self._activations, "gradient_rms": gradients, "weight_rms": weights,
            "max_logit": self._logits,
        }  # fmt: skip
        return {kind: {name: float(value) for name, value in values.items()} for kind, values in groups.items()}

    def _listen(self, name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._activations[name] = _rms([output])

        return hook

    def _watch(self, name: str, heads: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            q, k, _v = _split(output.detach()[0, :_TOKENS], heads)[..., 0, :].float().unbind(-2)
            self._logits[name] = (q @ k.T).abs().max() * q.shape[-1] ** -0.5

        return hook


@torch.no_grad()
def _rms(tensors: Sequence[Tensor]) -> Tensor:
    square = torch.stack([t.detach().float().square().sum() for t in tensors]).sum()
    return (square / max(1, sum(t.numel() for t in tensors))).sqrt()
