"""Random images with and without ties, for the laws that hold for any image."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter


@st.composite
def image_pairs(draw, max_side=5, axes=(2, 3), max_voxels=125):
    """Two images of one shape, exact in float32; noise, few levels, binary, and mixtures."""
    shape = tuple(draw(st.lists(st.integers(1, max_side), min_size=min(axes), max_size=max(axes))))
    while np.prod(shape) > max_voxels:
        shape = (*shape[:-1], shape[-1] - 1)
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    return tuple(make_image(rng, shape, draw(st.sampled_from(KINDS))) for _ in range(2))


KINDS = ("noise", "levels", "binary", "constant", "smooth")


def make_image(rng, shape, kind):
    if kind == "levels":
        return rng.integers(0, 5, shape) / 4
    if kind == "binary":
        return (rng.random(shape) > 0.5).astype(float)
    if kind == "constant":
        return np.full(shape, 0.25)
    noise = rng.random(shape)
    if kind == "smooth":
        noise = gaussian_filter(noise, 1.0)
    return np.round(noise * 4096) / 4096


def distinct_image(rng, shape):
    """Every value occurs once: no ties, hence no dependence on the order of axes."""
    return (rng.permutation(int(np.prod(shape))) / 4096).reshape(shape)
