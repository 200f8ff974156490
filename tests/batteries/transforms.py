"""The contract of every public transform: one function a property.

Each takes the array class, the dictionary class and the JSON arguments that both share; the dictionary class takes
`keys` besides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.transform import Randomizable

from tests.batteries.common import check_built_from_json

SHAPE = (1, 10, 12, 14)
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def make_image(seed: int = 0) -> MetaTensor:
    """Seeded image (C, X, Y, Z) with an affine."""
    values = torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))
    return MetaTensor(values, affine=torch.as_tensor(AFFINE))


def build(cls: type, kwargs: dict[str, Any]) -> Any:
    """A transform whose random choices, if any, are seeded."""
    transform = cls(**kwargs)
    if isinstance(transform, Randomizable):
        transform.set_random_state(seed=0)
    return transform


def _apply_both(array: type, dictionary: type, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    data = {"image": make_image(), "case": "one"}
    return build(array, kwargs)(make_image()), build(dictionary, {"keys": "image", **kwargs})(data)


def agrees_as_array_and_dictionary(array: type, dictionary: type, kwargs: dict[str, Any]) -> None:
    """Both forms give the same values and the same affine, and other entries pass through."""
    single, data = _apply_both(array, dictionary, kwargs)
    assert torch.equal(torch.as_tensor(single), torch.as_tensor(data["image"])), "array and dictionary form differ"
    if isinstance(single, MetaTensor):
        torch.testing.assert_close(single.affine, data["image"].affine)
    assert data["case"] == "one"


def is_reproducible(array: type, dictionary: type, kwargs: dict[str, Any]) -> None:
    """The same seed gives the same result."""
    (first, _), (second, _) = _apply_both(array, dictionary, kwargs), _apply_both(array, dictionary, kwargs)
    assert torch.equal(torch.as_tensor(first), torch.as_tensor(second)), "two runs with one seed differ"


def leaves_inputs_alone(array: type, dictionary: type, kwargs: dict[str, Any]) -> None:
    """Neither the image nor the dictionary that came in is changed."""
    image = make_image()
    build(array, kwargs)(image)
    assert torch.equal(image, make_image()), "the image was changed in place"
    data = {"image": make_image()}
    build(dictionary, {"keys": "image", **kwargs})(data)
    assert set(data) == {"image"}, "the dictionary was changed in place"
    assert torch.equal(data["image"], make_image()), "the dictionary's image was changed in place"


def accepts_arrays_of_numpy(array: type, dictionary: type, kwargs: dict[str, Any]) -> None:
    """A plain NumPy array gives the same values as a MetaTensor."""
    plain = build(array, kwargs)(make_image().numpy())
    expected = build(array, kwargs)(make_image())
    np.testing.assert_allclose(np.asarray(plain), np.asarray(expected), rtol=1e-6)


def is_undone_by_its_inverse(array: type, dictionary: type, kwargs: dict[str, Any]) -> None:
    """Where a transform is invertible, its inverse restores shape, affine and (away from resampling) values."""
    transform = build(dictionary, {"keys": "image", **kwargs})
    if not isinstance(transform, InvertibleTransform):
        return
    before = make_image()
    after = transform.inverse(transform({"image": make_image()}))["image"]
    assert after.shape == before.shape, f"the inverse gives shape {tuple(after.shape)}, not {tuple(before.shape)}"
    torch.testing.assert_close(after.affine, before.affine)
    assert not after.applied_operations, "the inverse leaves its trace on the image"
    torch.testing.assert_close(torch.as_tensor(after), torch.as_tensor(before), rtol=0, atol=1e-4)


def is_built_from_json(array: type, dictionary: type, kwargs: dict[str, Any]) -> None:
    """A bundle's JSON can build both forms, and a misspelt argument is refused."""
    check_built_from_json(array, kwargs)
    check_built_from_json(dictionary, {"keys": ["image"], **kwargs})


PROPERTIES: tuple[Callable[[type, type, dict[str, Any]], None], ...] = (
    agrees_as_array_and_dictionary,
    is_reproducible,
    leaves_inputs_alone,
    accepts_arrays_of_numpy,
    is_undone_by_its_inverse,
    is_built_from_json,
)
