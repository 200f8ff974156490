"""Where the golden values of optimizers lie: a few in the checkout, all of them beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parents[2] / "golden" / "optimizers"
SHARED = Path(__file__).resolve().parents[4] / "shared" / "golden" / "optimizers"


def find_golden(pattern: str) -> list[Path]:
    """Files whose name matches, from the larger set where it is there."""
    return sorted((SHARED if SHARED.is_dir() else HERE).glob(pattern))


def load_golden(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def replay(optimizer_of, golden, names=None, rtol=1e-9):
    """Feed stored gradients to an optimizer, and compare the weights after every step."""
    names = names or [key[3:] for key in golden if key.startswith("p0_")]
    weights = {n: torch.nn.Parameter(torch.from_numpy(golden[f"p0_{n}"].copy())) for n in names}
    optimizer = optimizer_of(weights)
    for step in range(len(golden[f"g_{names[0]}"])):
        for name, weight in weights.items():
            weight.grad = torch.from_numpy(golden[f"g_{name}"][step].copy())
        optimizer.step()
        for name, weight in weights.items():
            np.testing.assert_allclose(
                weight.detach().numpy(), golden[f"p_{name}"][step], rtol=rtol, atol=1e-12, err_msg=f"{name}, {step}"
            )
