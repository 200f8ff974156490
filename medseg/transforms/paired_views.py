"""Two random views of every sample, with the matrices that tell where each view lies in the image.

    view(u) = image(N u),    N = D_image^-1 A_image^-1 A_view D_view

with A the affine from voxels to the world, and D from normalised coordinates (-1 to 1 from border to border, last axis
first, as `torch.nn.functional.affine_grid` takes them with `align_corners=False`) to voxels. So

    grid_sample(image, affine_grid(N[:-1], size of the view))

makes the view again, as far as a rotation, scaling, shearing, mirroring, shift or crop made it.

Source of the use: Dong, Xie, Ward, "Adaptively Weighted Data Augmentation Consistency Regularization for Robust
Optimization under Concept Shift" (ICML 2023), where two views are compared in feature space. Their code forgets how the
views were turned; `medseg.losses.AdaptiveWeightedConsistencyLoss(align="inverse")` undoes it with these matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms.transform import MapTransform, Randomizable
from monai.utils.enums import TransformBackends
from monai.utils.type_conversion import convert_to_tensor

SECOND = "_view2"
AFFINE = "view_affine"


class PairedViewsd(MapTransform, Randomizable):
    """Apply a random transform twice: the first view takes the keys' places, the second stands under `{key}_view2`.

    `view_affine` and `view_affine_view2` are added, (d + 1, d + 1) float32 for d spatial axes, see the module's
    formula. What moves voxels in other ways (elastic and grid distortions) is not in them.

    Crop before this transform where both views are to show the same patch. Everything after it must name both views.

    Args:
        keys: keys of the images and labels that the transform handles.
        transform: a dictionary transform, such as `Compose` of random ones; in a bundle a nested `_target_`. It must
            give one dictionary, not a list of patches.
        allow_missing_keys: whether a key that is not there is passed over.

    Raises:
        TypeError: the transform cannot be called.

    Example:
        >>> from monai.transforms import RandFlipd
        >>> pair = PairedViewsd(["image"], RandFlipd("image", prob=1.0, spatial_axis=0))
        >>> views = pair({"image": torch.arange(4.0).view(1, 2, 2)})
        >>> sorted(views)
        ['image', 'image_view2', 'view_affine', 'view_affine_view2']
        >>> views["view_affine_view2"]                         # mirrored along the first axis, which stands last
        tensor([[ 1.,  0.,  0.],
                [ 0., -1.,  0.],
                [ 0.,  0.,  1.]])
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012  (MONAI's protocol: a list on the class)

    def __init__(
        self,
        keys: KeysCollection,
        transform: Callable[[dict[Hashable, Any]], Any],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not callable(transform):
            raise TypeError(f"transform must be a dictionary transform, got {type(transform).__name__}")
        self.transform = transform

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> PairedViewsd:
        """Seed the transform that is applied twice."""
        super().set_random_state(seed, state)
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed=int(self.R.randint(2**31)))
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Make both views of a copy of the dictionary.

        Raises:
            ValueError: the transform gives several patches.
        """
        keys = list(self.key_iterator(dict(data)))
        before = {key: convert_to_tensor(data[key], track_meta=True) for key in keys}
        result = dict(data)
        for ending in ("", SECOND):
            # Copies, because transforms write their traces into what they are given.
            view = self.transform({**data, **deepcopy(before)})
            if not isinstance(view, Mapping):
                raise ValueError(
                    f"transform must give one dictionary for PairedViewsd, got {type(view).__name__}; take patches "
                    "before this transform"
                )
            result |= {f"{key}{ending}": view[key] for key in keys}
            if keys:
                result[f"{AFFINE}{ending}"] = locate_view(before[keys[0]], view[keys[0]])
        return result


def locate_view(image: MetaTensor, view: MetaTensor) -> torch.Tensor:
    """Matrix from normalised coordinates of a view to those of the image it was made of.

    Args:
        image: (C, spatial...) before the transform.
        view: (C, spatial...) after it.

    Returns:
        (d + 1, d + 1) float32 for d spatial axes, last axis first.
    """
    dims = image.ndim - 1
    sizes = [torch.tensor(x.shape[1:], dtype=torch.float64) for x in (image, view)]
    to_voxels = [_from_normalised(size) for size in sizes]
    affines = [torch.as_tensor(to_affine_nd(dims, x.affine)).to("cpu", torch.float64) for x in (image, view)]
    voxels = torch.linalg.solve(affines[0], affines[1])
    located = torch.linalg.solve(to_voxels[0], voxels @ to_voxels[1])
    order = [*reversed(range(dims)), dims]
    return located[order][:, order].float()


def _from_normalised(size: torch.Tensor) -> torch.Tensor:
    """Matrix from (-1, 1) at the borders of the outer voxels to voxel indices."""
    matrix = torch.eye(len(size) + 1, dtype=torch.float64)
    matrix[:-1, :-1] = torch.diag(size / 2)
    matrix[:-1, -1] = (size - 1) / 2
    return matrix
