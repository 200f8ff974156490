"""The inverse of the empirical Fisher matrix of some gradients, never formed: M-FAC.

For the last m gradients as rows of G (m, d):

    F = damp I + G^T G / m,     F^-1 x = (x - G^T (m damp I + G G^T)^-1 G x) / damp       (Woodbury)

Only the m x m matrix G G^T is factored, in float64; the cost is O(m d) a product and O(m^3) a factorisation. With
`block_size` the parameters are cut, and F is block-diagonal.

Source: Frantar, Kurtic, Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order Information" (NeurIPS
2021). Differs from the published code: its recursions over gradients give the same matrix in the same order of time,
but need a pivot-free LU and window lengths that suit the GPU; Woodbury needs neither.

m copies of the gradient are held: 512 of them for a U-Net of 30 million parameters are 60 GB. Use few gradients, or a
part of the network, such as a head that is tuned, or score weights for pruning by w^2 / (2 [F^-1]_ii).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from medseg.core.optim._checks import check_least, check_whole


class EmpiricalFisherInverse:
    """Products with the inverse Fisher matrix of given gradients, and its diagonal.

    Args:
        grads: (m, d), one gradient a row.
        damp: what is added to the diagonal, above 0.
        block_size: parameters to a diagonal block; all in one by default.

    Raises:
        ValueError: shapes or options do not fit.

    Example:
        >>> inverse = EmpiricalFisherInverse(torch.tensor([[2.0, 0.0]]), damp=1.0)      # F = diag(1 + 4, 1)
        >>> inverse.mul(torch.tensor([5.0, 3.0])), inverse.diag()
        (tensor([1., 3.]), tensor([0.2000, 1.0000]))
    """

    def __init__(self, grads: torch.Tensor, damp: float = 1e-5, block_size: int | None = None) -> None:
        if grads.ndim != 2 or not grads.is_floating_point() or 0 in grads.shape:
            raise ValueError(f"grads must be float and (gradients, parameters), got {tuple(grads.shape)} {grads.dtype}")
        _check_damp(damp)
        if block_size is not None:
            check_whole("block_size", block_size, 1)
        self.grads, self.damp = grads, damp
        width = block_size or grads.shape[1]
        self._parts = [slice(start, start + width) for start in range(0, grads.shape[1], width)]
        self._factors = [_factor(_gram(grads[:, part]), damp) for part in self._parts]

    def mul(self, x: torch.Tensor) -> torch.Tensor:
        """F^-1 x.

        Args:
            x: (d,).

        Raises:
            ValueError: its length is not that of the gradients.
        """
        if x.shape != self.grads.shape[1:]:
            raise ValueError(
                f"x must have shape {tuple(self.grads.shape[1:])} as the gradients do, got {tuple(x.shape)}"
            )
        parts = zip(self._parts, self._factors, strict=True)
        return torch.cat([_solve(self.grads[:, part], factor, x[part], self.damp) for part, factor in parts])

    def diag(self) -> torch.Tensor:
        """The diagonal of F^-1, (d,)."""
        found = []
        for part, factor in zip(self._parts, self._factors, strict=True):
            half = torch.linalg.solve_triangular(factor, self.grads[:, part].to(factor.dtype), upper=False)
            found.append((1 - half.square().sum(0)) / self.damp)
        return torch.cat(found).to(self.grads.dtype)


class FisherPreconditioner:
    """Replaces gradients by F^-1 g, where F is that of the last gradients: call it before an optimizer's step.

    With `SGDP(lr, momentum=mu, dampening=mu, scale_invariant=False)` this is the optimizer of M-FAC. The window starts
    with zeros, so that the first steps are about m g / |g|^2.

    Args:
        params: parameters; all must have a gradient at every call.
        num_grads: length m of the window; the memory is m times that of the gradients.
        damp: what is added to the diagonal, above 0.
        weight_decay: times the weights, added to the gradient before it enters the window.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(3))
        >>> fisher, sgd = FisherPreconditioner([w], num_grads=2), torch.optim.SGD([w], lr=0.1)
        >>> w.grad = torch.tensor([0.0, 2.0, 0.0])
        >>> fisher.precondition()
        >>> sgd.step()
        >>> [round(x, 3) for x in w.tolist()]                                           # a step of 0.1 m / |g|
        [1.0, 0.9, 1.0]
    """

    def __init__(
        self, params: Iterable[torch.Tensor], num_grads: int = 32, damp: float = 1e-5, weight_decay: float = 0.0
    ) -> None:
        check_whole("num_grads", num_grads, 1)
        _check_damp(damp)
        check_least("weight_decay", weight_decay)
        self.params = list(params)
        if not self.params:
            raise ValueError("params must hold at least one parameter, got none")
        self.num_grads, self.damp, self.weight_decay = num_grads, damp, weight_decay
        like = torch.promote_types(self.params[0].dtype, torch.float32)
        count = sum(p.numel() for p in self.params)
        self.window = torch.zeros(num_grads, count, dtype=like, device=self.params[0].device)
        self.gram = torch.zeros(num_grads, num_grads, dtype=torch.float64, device=self.window.device)
        self.count = 0

    @torch.no_grad()
    def precondition(self) -> None:
        """Take the gradients into the window, and put F^-1 g in their place.

        Raises:
            ValueError: a parameter has no gradient.
        """
        grad = torch.cat([piece.to(self.window.dtype) for piece in self._flat_grads()])
        row = self.count % self.num_grads
        self.window[row] = grad
        # One row and column of G G^T change a step.
        products = (self.window @ grad).to(torch.float64)
        self.gram[row], self.gram[:, row] = products, products
        self.count += 1
        direction = _solve(self.window, _factor(self.gram, self.damp), grad, self.damp)
        for p, piece in zip(self.params, direction.split([p.numel() for p in self.params]), strict=True):
            p.grad = piece.view(p.shape).to(p.dtype)

    def state_dict(self) -> dict[str, Any]:
        """The window, to go on from."""
        return {"window": self.window, "gram": self.gram, "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a window.

        Args:
            state_dict: what `state_dict()` gave.

        Raises:
            ValueError: it is of other parameters or another length.
        """
        if state_dict["window"].shape != self.window.shape:
            wanted, got = tuple(self.window.shape), tuple(state_dict["window"].shape)
            raise ValueError(f"state_dict must hold a window of shape {wanted}, got {got}; use the same options")
        self.window.copy_(state_dict["window"])
        self.gram.copy_(state_dict["gram"])
        self.count = state_dict["count"]

    def _flat_grads(self) -> Iterator[torch.Tensor]:
        for number, p in enumerate(self.params):
            if p.grad is None:
                raise ValueError(f"params[{number}] has no gradient; give only parameters that take part in every step")
            yield (p.grad + self.weight_decay * p).reshape(-1)


def _check_damp(damp: float) -> None:
    if not damp > 0:
        raise ValueError(f"damp must be above 0, got {damp}")


def _gram(grads: torch.Tensor) -> torch.Tensor:
    return (grads @ grads.T).to(torch.float64)


def _factor(gram: torch.Tensor, damp: float) -> torch.Tensor:
    """Cholesky factor of m damp I + G G^T."""
    return torch.linalg.cholesky(gram + len(gram) * damp * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))


def _solve(grads: torch.Tensor, factor: torch.Tensor, x: torch.Tensor, damp: float) -> torch.Tensor:
    inner = torch.cholesky_solve((grads @ x).to(factor.dtype).unsqueeze(1), factor).squeeze(1)
    return (x - grads.T @ inner.to(grads.dtype)) / damp
