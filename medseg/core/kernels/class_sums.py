"""Sums over voxels from which Dice, Tversky, cross-entropy and focal losses are made, without copies of probabilities.

For probabilities p = softmax(z) or sigmoid(z), target y (class ids or masks) and every item and class,

    hits      = sum p y              predicted = sum p^power         present = sum y^power
    surprise  = sum y (1 - p)^gamma (-log p)                         voxels  = number of voxels that count
    rest      = sum -log p  with a softmax (label smoothing),  sum (1 - y) p^gamma (-log(1 - p))  with a sigmoid

A loss is then a formula on (B, C) tensors that autograd differentiates; u, v, e, r being its gradients with respect to
hits, predicted, surprise and rest, with h(p) = gamma p (1 - p)^(gamma - 1) log p - (1 - p)^gamma,

    softmax   t_c = p_c (u_c y_c + v_c power p_c^(power - 1)) + e_c y_c h(p_c) - r_c,   dz_c = t_c - p_c sum of all t_k
    sigmoid   dz = p (1 - p) (u y + v power p^(power - 1)) + e y (1 - p) h(p) - r (1 - y) p h(1 - p)

The last two sums may be those of a softmax while the others are not (Dice by a sigmoid beside a cross-entropy over
classes); gradients then add up.

Both passes walk over blocks of voxels that fit in a processor's cache; the backward computes the probabilities again.
Sums of blocks are added in float64, in the order of the blocks. On a CPU compiled loops do this: for a softmax and
class ids `class_sums_processor.py`, else `class_sums_masks.py`; `backend="torch"` runs what defines the result.

Sources of the losses: Milletari, Navab, Ahmadi, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical
Image Segmentation", 2016; Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", 2017; Salehi,
Erdogmus, Gholipour, "Tversky loss function for image segmentation using 3D fully convolutional deep networks", 2017.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from medseg.core.kernels.dispatch import check_backend, choose_backend, wants_torch

SUPPORTED = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATIONS = ("softmax", "sigmoid", "none")
ENTROPIES = ("same", "softmax", "none")
# Logits in a block: few on a CPU, where blocks are to stay in a cache, and few launches elsewhere.
_BLOCK_CPU = 2**19
_BLOCK_OTHER = 2**26


class ClassSums(NamedTuple):
    """Sums over the voxels of every item and class, (B, C) each; float32, or float64 where the logits are."""

    hits: Tensor
    predicted: Tensor
    present: Tensor
    surprise: Tensor
    rest: Tensor
    voxels: Tensor


class _How(NamedTuple):
    activation: str
    power: int
    gamma: float
    ignore: int | None
    entropy: str

    @property
    def of_entropy(self) -> str:
        """The activation of surprise and rest."""
        return self.activation if self.entropy == "same" else self.entropy


def class_sums(
    logits: Tensor,
    target: Tensor,
    *,
    activation: str = "softmax",
    power: int = 1,
    gamma: float = 0.0,
    ignore_index: int | None = None,
    entropy: str = "same",
    backend: str = "auto",
) -> ClassSums:
    """Sum over the voxels what Dice, Tversky, cross-entropy and focal losses need.

    Differentiable once, with respect to `logits`; arithmetic is in float32 (float64 stays).

    Args:
        logits: (B, C, spatial...), any float type and strides.
        target: class ids (B, 1, spatial...) where C > 1, ids below C unless ignored (not checked); or masks of the
            shape of `logits`, values in [0, 1].
        activation: "softmax", "sigmoid", or "none" for probabilities (then surprise and rest are 0).
        power: 1, or 2 for squares in predicted and present.
        gamma: focal exponent, at least 0; 0 is the plain cross-entropy.
        ignore_index: voxels with this id do not count; None counts all. With masks, the voxels of the mask of that
            index, or where the index is no channel, those without any mask.
        entropy: activation of surprise and rest: "same", "softmax", or "none", which may leave them at 0 and saves
            the logarithms.
        backend: "auto", "torch" or "triton", see `medseg.core.kernels.choose_backend`.

    Returns:
        The sums. `present` and `voxels` have no gradient.

    Raises:
        ValueError: wrong shapes, activation, power, gamma, entropy or backend.
        ImportError: `backend="triton"`, and triton is not installed.

    Example:
        >>> logits = torch.tensor([2.0, 0.0]).log1p().view(1, 2, 1, 1)      # p = 3/4, 1/4
        >>> sums = class_sums(logits, torch.zeros(1, 1, 1, 1))
        >>> sums.hits, sums.predicted, sums.present
        (tensor([[0.7500, 0.0000]]), tensor([[0.7500, 0.2500]]), tensor([[1., 0.]]))
        >>> sums.surprise               # -log(3/4)
        tensor([[0.2877, 0.0000]])
    """
    _check(logits, target, activation, power, gamma, entropy)
    check_backend(backend)
    return ClassSums(*_sum(logits, target, activation, power, float(gamma), ignore_index, entropy, backend).unbind(1))


@torch.library.custom_op("medseg::class_sums", mutates_args=())
def _sum(
    logits: Tensor,
    target: Tensor,
    activation: str,
    power: int,
    gamma: float,
    ignore: int | None,
    entropy: str,
    backend: str,
) -> Tensor:
    how = _How(activation, power, gamma, ignore, entropy)
    if choose_backend(backend, logits, SUPPORTED) == "triton":
        from medseg.core.kernels import class_sums_triton

        return class_sums_triton.sum_up(logits, target, how)
    if _runs_compiled(logits, backend):
        return _choose_loops(logits, target, how).sum_up(logits, target, how)
    sums = logits.new_zeros((logits.shape[0], 6, logits.shape[1]), dtype=torch.float64)
    for item, _, z, y in _blocks(logits, target):
        sums[item] += _sum_masks(z, y, how)
    return sums.to(torch.promote_types(logits.dtype, torch.float32))


@_sum.register_fake
def _(
    logits: Tensor,
    target: Tensor,
    activation: str,
    power: int,
    gamma: float,
    ignore: int | None,
    entropy: str,
    backend: str,
) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty((logits.shape[0], 6, logits.shape[1]), dtype=dtype)


@torch.library.custom_op("medseg::class_sums_backward", mutates_args=())
def _spread(
    gradient: Tensor,
    logits: Tensor,
    target: Tensor,
    activation: str,
    power: int,
    gamma: float,
    ignore: int | None,
    entropy: str,
    backend: str,
) -> Tensor:
    how = _How(activation, power, gamma, ignore, entropy)
    if choose_backend(backend, logits, SUPPORTED) == "triton":
        from medseg.core.kernels import class_sums_triton

        return class_sums_triton.spread(gradient, logits, target, how)
    if _runs_compiled(logits, backend):
        return _choose_loops(logits, target, how).spread(gradient, logits, target, how)
    result = torch.empty_like(logits)
    flat = result.flatten(2)
    if flat.numel() and flat.data_ptr() != result.data_ptr():  # strides that no view flattens
        result = torch.empty_like(logits, memory_format=torch.contiguous_format)
        flat = result.flatten(2)
    for item, part, z, y in _blocks(logits, target):
        _spread_masks(flat[item, :, part], gradient[item], z, y, how)
    return result


@_spread.register_fake
def _(
    gradient: Tensor,
    logits: Tensor,
    target: Tensor,
    activation: str,
    power: int,
    gamma: float,
    ignore: int | None,
    entropy: str,
    backend: str,
) -> Tensor:
    return torch.empty_like(logits)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, target, *ctx.how = inputs
    ctx.save_for_backward(logits, target)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    logits, target = ctx.saved_tensors
    return (_spread(gradient, logits, target, *ctx.how), *(None,) * 7)


_sum.register_autograd(_backward, setup_context=_save)


def _blocks(logits: Tensor, target: Tensor) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    """Item, voxels, logits (C, N) in full precision and target (1 or C, N) of one block after the other."""
    z, y = logits.flatten(2), target.flatten(2)
    full = torch.promote_types(logits.dtype, torch.float32)
    block = _BLOCK_CPU if logits.device.type == "cpu" else _BLOCK_OTHER
    size = max(block // max(z.shape[1], 1), 64)
    for item in range(z.shape[0]):
        for start in range(0, z.shape[2], size):
            part = slice(start, start + size)
            yield item, part, z[item, :, part].to(full), y[item, :, part]


def _runs_compiled(logits: Tensor, backend: str) -> bool:
    """Whether compiled loops do it: on a CPU, up to float32, and nobody asked for plain PyTorch."""
    return logits.device.type == "cpu" and logits.dtype in SUPPORTED and not wants_torch(backend)


def _choose_loops(logits: Tensor, target: Tensor, how: _How) -> Any:
    """The module whose loops fit; with class ids and a softmax each voxel has to look at one class alone."""
    if how.activation == "softmax" and target.shape[1] < logits.shape[1]:
        from medseg.core.kernels import class_sums_processor

        return class_sums_processor
    from medseg.core.kernels import class_sums_masks

    return class_sums_masks


def _masks(z: Tensor, y: Tensor, how: _How) -> tuple[Tensor, Tensor]:
    """Target as masks (C, N), and the weights (1, N) of the voxels."""
    by_id = y.shape[0] < z.shape[0]
    masks = (y.long() == torch.arange(z.shape[0], device=y.device)[:, None]).to(z) if by_id else y.to(z)
    if how.ignore is None:
        return masks, z.new_ones(1, z.shape[1])
    if y.shape[0] == 1:
        counts = y != how.ignore
    elif 0 <= how.ignore < y.shape[0]:
        counts = 1 - masks[how.ignore, None]
    else:
        counts = masks.sum(0, keepdim=True) > 0
    # An ignored value, such as 255, is no mask.
    return masks.masked_fill(counts == 0, 0), counts.to(z)


def _activate(z: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, and the logarithms of p and of 1 - p; with a softmax, of p twice."""
    if activation == "none":
        return z, torch.zeros_like(z), torch.zeros_like(z)
    if activation == "sigmoid":
        return torch.sigmoid(z), functional.logsigmoid(z), functional.logsigmoid(-z)
    log_p = functional.log_softmax(z, 0)
    return log_p.exp(), log_p, log_p


def _sum_masks(z: Tensor, y: Tensor, how: _How) -> Tensor:
    """The six sums (6, C) of one block with masks."""
    y, counts = _masks(z, y, how)
    p = _activate(z, how.activation)[0]
    q, log_q, log_rest = _activate(z, how.of_entropy)
    surprise = torch.where(y > 0, -y * log_q * _fade(q, how.gamma), 0)
    rest = -log_rest
    if how.of_entropy == "sigmoid":
        rest = torch.where(y < 1, rest * (1 - y) * _fade(1 - q, how.gamma), 0)
    values = (p * y, p**how.power, y**how.power, surprise, rest, torch.ones_like(p))
    return torch.stack([torch.where(counts > 0, value * counts, 0).sum(1, dtype=torch.float64) for value in values])


def _spread_masks(result: Tensor, gradient: Tensor, z: Tensor, y: Tensor, how: _How) -> None:
    """Write the gradient (C, N) of one block with masks."""
    u, v, _, e, r, _ = gradient.to(z)[..., None]
    y, counts = _masks(z, y, how)
    p = _activate(z, how.activation)[0]
    slope = u * y + v * (1 if how.power == 1 else 2 * p)
    if how.activation == "softmax":
        slope = p * (slope - (p * slope).sum(0))
    elif how.activation == "sigmoid":
        slope = p * (1 - p) * slope
    q, log_q, log_rest = _activate(z, how.of_entropy)
    if how.of_entropy == "softmax":
        term = e * y * _bend(q, log_q, how.gamma) - r
        slope = slope + term - q * term.sum(0)
    elif how.of_entropy == "sigmoid":
        slope = slope + e * y * (1 - q) * _bend(q, log_q, how.gamma)
        slope = slope - r * (1 - y) * q * _bend(1 - q, log_rest, how.gamma)
    result.copy_(torch.where(counts > 0, slope * counts, 0))


def _fade(p: Tensor, gamma: float) -> Tensor | float:
    """(1 - p)^gamma."""
    return 1.0 if gamma == 0 else (1 - p).clamp(min=_tiny(p)) ** gamma


def _bend(p: Tensor, log_p: Tensor, gamma: float) -> Tensor | float:
    """h(p), the slope of (1 - p)^gamma (-log p), times p."""
    if gamma == 0:
        return -1.0
    rest = (1 - p).clamp(min=_tiny(p))
    return gamma * p * rest ** (gamma - 1) * log_p - rest**gamma


def _tiny(p: Tensor) -> float:
    # At p = 1 a power below 0 would be infinite; a logarithm of 0 follows it.
    return torch.finfo(p.dtype).eps ** 2


def _check(logits: Tensor, target: Tensor, activation: str, power: int, gamma: float, entropy: str) -> None:
    if logits.ndim < 3 or not logits.is_floating_point():
        raise ValueError(f"logits must be (B, C, spatial...) of a float type, got {logits.dtype} {tuple(logits.shape)}")
    if tuple(target.shape) not in (tuple(logits.shape), (logits.shape[0], 1, *logits.shape[2:])):
        raise ValueError(
            f"target has shape {tuple(target.shape)}; expected class ids {(logits.shape[0], 1, *logits.shape[2:])} or "
            f"masks {tuple(logits.shape)}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    if power not in (1, 2):
        raise ValueError(f"power is {power}; choose 1 or 2")
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma is {gamma}; expected a number of at least 0")
    if entropy not in ENTROPIES:
        raise ValueError(f"entropy is {entropy!r}; choose one of {', '.join(ENTROPIES)}")
