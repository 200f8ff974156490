"""Test-time mirroring: average the network's answers over mirror images of its input.

    f_mirror(x) = 1 / |A| * sum over a in A of  a(f(a(x)))

where A are all combinations of flips along the given axes. A network trained with random flips along these axes makes
partly independent errors on the mirror images, so their average is a little better than one answer; it costs
2^(number of axes) passes. nnU-Net (Isensee et al., "nnU-Net: a self-configuring method for deep learning-based
biomedical image segmentation", 2021) averages logits over all axes; here the axes are named, since anatomy that has a
front and a back is rarely trained with flips along that axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from monai.inferers import Inferer


class MirrorInferer(Inferer):
    """Run another inferer with a network that averages logits over mirrored inputs.

    Args:
        inferer: the inferer to run, e.g. a `SlidingWindowInferer`; mirroring happens inside each window.
        axes: spatial axes to mirror along, 0 being the first axis after the channel.

    Raises:
        ValueError: `axes` is empty, has repeats or negative numbers.

    Example:
        >>> import torch
        >>> from monai.inferers import SimpleInferer
        >>> inferer = MirrorInferer(SimpleInferer(), axes=[0])
        >>> x = torch.arange(4.0).reshape(1, 1, 4)
        >>> inferer(x, lambda t: t.cumsum(-1))[0, 0].tolist()
        [3.0, 3.5, 4.0, 4.5]
    """

    def __init__(self, inferer: Inferer, axes: Sequence[int] = (0,)) -> None:
        super().__init__()
        if not axes or len(set(axes)) != len(axes) or min(axes) < 0:
            raise ValueError(f"axes must be distinct spatial axes such as [0, 1, 2], got {list(axes)}")
        self.inferer = inferer
        self.axes = tuple(axes)

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Infer.

        Args:
            inputs: shape (B, C, spatial...).
            network: the network, or any callable with the same shapes.
            *args: handed to the network.
            **kwargs: handed to the network.

        Returns:
            What the wrapped inferer returns.
        """
        spatial_dims = inputs.dim() - 2
        if max(self.axes) >= spatial_dims:
            raise ValueError(f"axes {list(self.axes)} do not fit an input with {spatial_dims} spatial dimensions")
        return self.inferer(inputs, self.mirrored(network), *args, **kwargs)

    def mirrored(self, network: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Wrap a network so that it averages its answers over the mirror images of a window.

        Args:
            network: takes (B, C, spatial...) and returns (B, K, spatial...).

        Returns:
            A callable with the same shapes.
        """
        dims = [a + 2 for a in self.axes]
        flips = [c for n in range(1, len(dims) + 1) for c in combinations(dims, n)]

        def average(window: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            total = network(window, *args, **kwargs)
            for flip in flips:
                total = total + network(window.flip(flip), *args, **kwargs).flip(flip)
            return total / (len(flips) + 1)

        return average
