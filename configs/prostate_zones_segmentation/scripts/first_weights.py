"""Turn the first stage of `pipelines/pirads_dual_path.py` (two paths with distances) into weights to start from.

The pipeline has slices first, this bundle has them last as NIfTI files do; kernels are transposed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from medseg.data import atomic_path


def main() -> None:
    """Read the command line and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", type=Path, help="runs/stage1-aux-SEED-FOLD-....pt of the pipeline")
    parser.add_argument("weights", type=Path, help="file to write, models/model.pt of a copy of this bundle")
    options = parser.parse_args()
    state = torch.load(options.stage, weights_only=True)["state"]
    turned = {name: w.permute(0, 1, 4, 3, 2).contiguous() if w.ndim == 5 else w for name, w in state.items()}
    with atomic_path(options.weights) as part:
        torch.save(turned, part)


if __name__ == "__main__":
    main()
