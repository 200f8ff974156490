"""The contract of every public loss: one function a property, each taking the class and its JSON arguments.

A loss gets logits (B, C, spatial...) and class ids (B, 1, spatial...); `kwargs` must make it accept those, commonly
`{"to_onehot_y": true, "softmax": true}`.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import torch

from tests.batteries.common import check_built_from_json

CLASSES = 3
SHAPES = {"2D": (6, 8), "3D": (4, 6, 8)}
Loss = type[torch.nn.Module]


def make_batch(
    shape: tuple[int, ...] = SHAPES["3D"], batch: int = 2, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, C, spatial...) and class ids (B, 1, spatial...) in which every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, CLASSES, *shape, generator=generator)
    target = torch.randint(0, CLASSES, (batch, 1, *shape), generator=generator)
    return logits, target.float()


def has_exact_gradient(cls: Loss, kwargs: dict[str, Any]) -> None:
    """The gradient agrees with finite differences in float64."""
    logits, target = make_batch((4, 5), batch=1)
    logits = logits.double().requires_grad_()
    loss = cls(**kwargs)
    assert torch.autograd.gradcheck(lambda x: loss(x, target.double()), (logits,))


def computes_in_float32(cls: Loss, kwargs: dict[str, Any]) -> None:
    """Half-precision logits and autocast give the float32 value of the same numbers."""
    logits, target = make_batch()
    loss = cls(**kwargs)
    for dtype in (torch.float16, torch.bfloat16):
        half = logits.to(dtype)
        value = loss(half, target)
        assert value.dtype == torch.float32, f"{dtype} logits gave {value.dtype}"
        torch.testing.assert_close(value, loss(half.float(), target))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, target)
    torch.testing.assert_close(value, loss(logits, target))


def accepts_integer_targets(cls: Loss, kwargs: dict[str, Any]) -> None:
    """Class ids may come as any integer type, as nnU-Net sends them."""
    logits, target = make_batch()
    loss = cls(**kwargs)
    for dtype in (torch.uint8, torch.int16, torch.int64):
        torch.testing.assert_close(loss(logits, target.to(dtype)), loss(logits, target))


def survives_empty_foreground(cls: Loss, kwargs: dict[str, Any]) -> None:
    """A target without foreground gives a finite value and a finite gradient."""
    logits, target = make_batch()
    logits.requires_grad_()
    value = cls(**kwargs)(logits, torch.zeros_like(target))
    assert torch.isfinite(value), f"value is {value.item()}"
    (gradient,) = torch.autograd.grad(value, logits)
    assert torch.isfinite(gradient).all(), "gradient is not finite"


def lets_nan_through(cls: Loss, kwargs: dict[str, Any]) -> None:
    """A NaN among the logits makes the loss NaN instead of vanishing."""
    logits, target = make_batch()
    logits[0, 1, 2, 3, 4] = float("nan")
    assert torch.isnan(cls(**kwargs)(logits, target))


def reduces_consistently(cls: Loss, kwargs: dict[str, Any]) -> None:
    """`mean` and `sum` are the mean and sum of `none`; a batch's mean is the mean of its halves' means."""
    logits, target = make_batch(batch=4)
    mean = cls(**kwargs)(logits, target)
    if "reduction" in inspect.signature(cls).parameters:
        each = cls(**{**kwargs, "reduction": "none"})(logits, target)
        torch.testing.assert_close(mean, each.mean())
        torch.testing.assert_close(cls(**{**kwargs, "reduction": "sum"})(logits, target), each.sum())
    if not kwargs.get("batch"):
        halves = [cls(**kwargs)(x, y) for x, y in zip(logits.chunk(2), target.chunk(2), strict=True)]
        torch.testing.assert_close(mean, torch.stack(halves).mean())


def works_in_2d_and_3d(cls: Loss, kwargs: dict[str, Any]) -> None:
    """Both give a finite scalar with a gradient that is not zero everywhere."""
    for name, shape in SHAPES.items():
        logits, target = make_batch(shape)
        logits.requires_grad_()
        value = cls(**kwargs)(logits, target)
        assert value.ndim == 0, f"{name}: expected a scalar, got shape {tuple(value.shape)}"
        (gradient,) = torch.autograd.grad(value, logits)
        assert torch.isfinite(value), f"{name}: value is {value.item()}"
        assert gradient.abs().sum() > 0, f"{name}: no gradient"


def ignores_mirroring(cls: Loss, kwargs: dict[str, Any]) -> None:
    """Mirroring logits and target together changes nothing."""
    logits, target = make_batch()
    loss = cls(**kwargs)
    for axis in (2, 3, 4):
        torch.testing.assert_close(loss(logits.flip(axis), target.flip(axis)), loss(logits, target))


def leaves_inputs_alone(cls: Loss, kwargs: dict[str, Any]) -> None:
    """Neither argument is changed in place, and no random state moves."""
    logits, target = make_batch()
    logits_before, target_before, random_before = logits.clone(), target.clone(), torch.get_rng_state()
    cls(**kwargs)(logits, target)
    assert torch.equal(logits, logits_before), "logits were changed in place"
    assert torch.equal(target, target_before), "target was changed in place"
    assert torch.equal(torch.get_rng_state(), random_before), "the global random state moved"


def refuses_labels_out_of_range(cls: Loss, kwargs: dict[str, Any]) -> None:
    """A class id without a channel is a ValueError that speaks of the target and of the label's value."""
    logits, target = make_batch()
    target[0, 0, 0, 0, 0] = 7
    message = None
    try:
        cls(**kwargs)(logits, target)
    except ValueError as error:
        message = str(error)
    assert message is not None, "label 7 of 3 channels was accepted"
    assert "target" in message, f"the message does not name the argument: {message}"
    assert "7" in message, f"the message does not name the label: {message}"


def is_built_from_json(cls: Loss, kwargs: dict[str, Any]) -> None:
    """A bundle's JSON can build the loss, and a misspelt argument is refused."""
    check_built_from_json(cls, kwargs)


def survives_pickling(cls: Loss, kwargs: dict[str, Any]) -> None:
    """A pickled loss computes the same value."""
    logits, target = make_batch()
    loss = cls(**kwargs)
    assert torch.equal(pickle.loads(pickle.dumps(loss))(logits, target), loss(logits, target))


PROPERTIES: tuple[Callable[[Loss, dict[str, Any]], None], ...] = (
    has_exact_gradient,
    computes_in_float32,
    accepts_integer_targets,
    survives_empty_foreground,
    lets_nan_through,
    reduces_consistently,
    works_in_2d_and_3d,
    ignores_mirroring,
    leaves_inputs_alone,
    refuses_labels_out_of_range,
    is_built_from_json,
    survives_pickling,
)
