"""The contract of every public metric: one function a property, each taking the class and its JSON arguments.

A metric gets a one-hot prediction and reference (B, C, spatial...) and collects values of shape (B, C).
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from tests.batteries.common import check_built_from_json

CHANNELS = 3
SHAPES = {"2D": (8, 9), "3D": (6, 7, 8)}
KINDS = ("present", "both_empty", "missed", "hallucinated")
Metric = type[Any]


def make_masks(
    shape: tuple[int, ...] = SHAPES["3D"], batch: int = 3, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """One-hot prediction and reference (B, C, spatial...) in which every channel holds something."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, CHANNELS, (batch, *shape), generator=generator) for _ in range(2)]
    pred, ref = (torch.nn.functional.one_hot(i, CHANNELS).movedim(-1, 1).float() for i in ids)
    return pred, ref


def make_kinds() -> tuple[torch.Tensor, torch.Tensor]:
    """One sample with four channels: present in both masks, in neither, missed, hallucinated."""
    pred, ref = torch.zeros(2, 1, 4, 6, 6)
    pred[:, 0, 1:3, 1:3] = ref[:, 0, 1:4, 1:3] = 1
    ref[:, 2, 2:4, 2:5] = 1
    pred[:, 3, 2:4, 2:5] = 1
    return pred, ref


def is_built_from_json(cls: Metric, kwargs: dict[str, Any]) -> None:
    """JSON arguments build it, directly and by its public path in a bundle's config; odd ones are refused."""
    everything = {**kwargs, "reduction": "mean_batch", "empty": {"both": "best", "missed": 3.5}, "spacing": [1.0, 2.0]}
    check_built_from_json(cls, everything)
    config = json.loads(json.dumps({"metric": {"_target_": f"medseg.metrics.{cls.__name__}", **everything}}))
    assert isinstance(ConfigParser(config).get_parsed_content("metric"), cls)


def refuses_unknown_options(cls: Metric, kwargs: dict[str, Any]) -> None:
    """A reduction, a case or a rule that does not exist is named in the error."""
    for wrong in ({"reduction": "average"}, {"empty": {"mised": "worst"}}, {"empty": "missed=bad"}):
        with pytest.raises(ValueError, match=r"average|mised|bad"):
            cls(**kwargs, **wrong)


def works_in_2d_and_3d(cls: Metric, kwargs: dict[str, Any]) -> None:
    """Values have shape (B, C), are finite where both masks hold something, and carry no gradient."""
    for shape in SHAPES.values():
        pred, ref = make_masks(shape)
        values = cls(**kwargs)(pred.requires_grad_(), ref)
        assert values.shape == (3, CHANNELS)
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()
        assert not values.requires_grad


def takes_any_mask_dtype(cls: Metric, kwargs: dict[str, Any]) -> None:
    """Booleans, integers and floats of 0 and 1 mean the same; other values are refused."""
    pred, ref = make_masks()
    expected = cls(**kwargs)(pred, ref)
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float16):
        torch.testing.assert_close(cls(**kwargs)(pred.to(dtype), ref.to(dtype)), expected)
    with pytest.raises(ValueError, match="0 and 1"):
        cls(**kwargs)(pred * 0.5, ref)


def splits_batches_consistently(cls: Metric, kwargs: dict[str, Any]) -> None:
    """One batch, one call a sample, and a list of samples collect the same values."""
    pred, ref = make_masks()
    whole, single, listed = cls(**kwargs), cls(**kwargs), cls(**kwargs)
    whole(pred, ref)
    for p, r in zip(pred, ref, strict=True):
        single(p[None], r[None])
    listed(list(pred), list(ref))
    torch.testing.assert_close(single.get_buffer(), whole.get_buffer())
    torch.testing.assert_close(listed.get_buffer(), whole.get_buffer())
    torch.testing.assert_close(single.aggregate(), whole.aggregate())


def takes_spacing_for_each_sample(cls: Metric, kwargs: dict[str, Any]) -> None:
    """A spacing for each sample gives what single calls give; a spacing of wrong length is refused."""
    pred, ref = make_masks(SHAPES["2D"], batch=2)
    sizes = [[1.0, 2.0], [0.5, 3.0]]
    together, listed = cls(**kwargs)(pred, ref, spacing=sizes), cls(**kwargs)(list(pred), list(ref), spacing=sizes)
    apart = [cls(**kwargs)(pred[i : i + 1], ref[i : i + 1], spacing=sizes[i]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(apart))
    torch.testing.assert_close(listed, torch.cat(apart))


def knows_empty_masks(cls: Metric, kwargs: dict[str, Any]) -> None:
    """By default both empty does not count, missed and hallucinated are worse than a present structure; all counted."""
    metric = cls(**kwargs)
    present, both, missed, hallucinated = metric(*make_kinds())[0].abs()
    assert torch.isnan(both)
    perfect = cls(**kwargs)(make_kinds()[0], make_kinds()[0])[0, 0].abs()
    for failure in (missed, hallucinated):
        assert torch.isfinite(failure)
        assert (failure - perfect).abs() > (present - perfect).abs()
    counts = metric.empty_counts()
    assert [int(counts[kind][channel]) for channel, kind in enumerate(KINDS)] == [1, 1, 1, 1]


def follows_the_policy(cls: Metric, kwargs: dict[str, Any]) -> None:
    """Rules given as words and numbers appear in the values."""
    rules = {"both": "best", "missed": 2.5, "hallucinated": "nan"}
    _, both, missed, hallucinated = cls(**kwargs, empty=rules)(*make_kinds())[0]
    perfect = cls(**kwargs)(make_kinds()[0], make_kinds()[0])[0, 0]
    assert both == perfect
    assert missed == 2.5
    assert torch.isnan(hallucinated)


def aggregates_nothing_to_nan(cls: Metric, kwargs: dict[str, Any]) -> None:
    """Before any call and where no value counts the aggregate is nan, never 0, under every reduction."""
    nothing = torch.zeros(2, CHANNELS, 5, 5)
    for reduction in ("mean", "mean_batch", "mean_channel", "sum", "sum_batch", "sum_channel", "none"):
        metric = cls(**kwargs, reduction=reduction, get_not_nans=True)
        assert torch.isnan(metric.aggregate()[0]).all()
        metric(nothing, nothing)
        value, counted = metric.aggregate()
        assert torch.isnan(value).all(), f"{reduction} gives {value}"
        assert counted.sum() == 0


def drops_the_background(cls: Metric, kwargs: dict[str, Any]) -> None:
    """Without background the first channel is left out, unless it is the only one."""
    pred, ref = make_masks()
    full = cls(**kwargs)(pred, ref)
    torch.testing.assert_close(cls(**kwargs, include_background=False)(pred, ref), full[:, 1:])
    only = cls(**kwargs, include_background=False)(pred[:, :1], ref[:, :1])
    torch.testing.assert_close(only, full[:, :1])


def forgets_after_reset(cls: Metric, kwargs: dict[str, Any]) -> None:
    """Reset starts anew."""
    metric = cls(**kwargs)
    metric(*make_masks())
    metric.reset()
    assert torch.isnan(metric.aggregate()).all()
    assert metric.empty_counts()["present"].numel() == 0


def survives_pickling(cls: Metric, kwargs: dict[str, Any]) -> None:
    """A pickled copy holds the same values and goes on."""
    metric = cls(**kwargs)
    metric(*make_masks())
    copy = pickle.loads(pickle.dumps(metric))
    torch.testing.assert_close(copy.aggregate(), metric.aggregate())


def refuses_shapes_that_differ(cls: Metric, kwargs: dict[str, Any]) -> None:
    """Prediction and reference of different shape, or with another number of axes, are refused."""
    pred, ref = make_masks()
    for wrong_pred, wrong_ref in ((pred[:, :2], ref), (pred[0, 0], ref[0, 0])):
        with pytest.raises(ValueError, match="shape"):
            cls(**kwargs)(wrong_pred, wrong_ref)


PROPERTIES: tuple[Callable[[Metric, dict[str, Any]], None], ...] = (
    is_built_from_json,
    refuses_unknown_options,
    works_in_2d_and_3d,
    takes_any_mask_dtype,
    splits_batches_consistently,
    takes_spacing_for_each_sample,
    knows_empty_masks,
    follows_the_policy,
    aggregates_nothing_to_nan,
    drops_the_background,
    forgets_after_reset,
    survives_pickling,
    refuses_shapes_that_differ,
)
