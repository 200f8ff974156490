"""The golden files of source-free adaptation: those of this repository, and more where they lie beside the checkout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

LOCAL = Path(__file__).parents[1] / "golden" / "sfda"
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "sfda"
FILES = {path.name: path for folder in (SHARED, LOCAL) for path in sorted(folder.glob("*.npz"))}
RATIO_CASES = [name for name in FILES if name[0] in "abcde"]
REFERENCE_CASES = [name for name in RATIO_CASES if name[0] != "e"]


class Golden(dict):
    """Arrays of one file, logits with a gradient, and ratios from sizes."""

    def __init__(self, name: str, dtype: torch.dtype):
        with np.load(FILES[name]) as file:
            super().__init__({key: file[key] for key in file})
        self.logits = torch.from_numpy(self["logits"]).to(dtype).requires_grad_()
        self.voxels = int(np.prod(self.logits.shape[2:]))
        if "prior_sizes" in self:
            self.ratio = torch.from_numpy(self["prior_sizes"]) / self.voxels

    def check(self, loss: torch.Tensor, value: str, gradient: str | None, rtol: float) -> None:
        np.testing.assert_allclose(loss.item(), self[value], rtol=rtol)
        if gradient is not None:
            (found,) = torch.autograd.grad(loss, self.logits)
            expected = self[gradient]
            np.testing.assert_allclose(found, expected, rtol=0, atol=max(rtol, 1e-9) * np.abs(expected).max())
