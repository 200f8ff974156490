"""Many small robust fits at once: projected Levenberg-Marquardt on Huber's loss, vectorised over the problems.

    minimise  sum_i weight_i rho(target_i - curve_i(theta)),    low <= theta <= high
    rho(r) = r^2/2 where |r| <= delta, else delta (|r| - delta/2)

The Hessian is J' W J with the weights W of iteratively reweighted least squares, which bounds Huber's loss from above,
so a full step never overshoots because of the loss. Multi-start, bootstrap and back-test all are batches of such
problems: solved together they take what a handful would take one by one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Curve = Callable[[np.ndarray], np.ndarray]
_STEP = 1e-6  # of the central differences, relative
_VALUES = 4_000_000  # values at once, to bound the memory


def minimise(
    curve: Curve,
    target: np.ndarray,
    starts: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    *,
    weights: np.ndarray,
    delta: float,
    steps: int = 100,
    tolerance: float = 1e-12,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a curve to each target.

    Args:
        curve: function of parameters (k, p) that gives values (k, n).
        target: values to meet, (n,) for all problems or (problems, n).
        starts: first parameters, (problems, p).
        low: lower bounds, (p,).
        high: upper bounds, (p,).
        weights: weight of each value, (n,).
        delta: where Huber's loss turns linear, above 0.
        steps: most steps of a problem.
        tolerance: a problem is done when two steps in a row gain less than this share of its objective.

    Returns:
        Parameters (problems, p) and objectives (problems,); the objective is inf where no finite value was found.
    """
    target = np.broadcast_to(target, (len(starts), np.shape(target)[-1]))
    size = max(1, _VALUES // (target.shape[-1] * starts.shape[-1]))
    parts = [slice(at, at + size) for at in range(0, len(starts), size)]
    found = [_solve(curve, target[p], starts[p], (low, high), weights, delta, steps, tolerance) for p in parts]
    return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])


def huber(residuals: np.ndarray, weights: np.ndarray, delta: float) -> np.ndarray:
    """Weighted sum of Huber's loss along the last axis; inf where a residual is not finite."""
    size = np.abs(residuals)
    loss = np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))
    total = (weights * loss).sum(-1)
    return np.where(np.isfinite(total), total, np.inf)


def jacobian(curve: Curve, theta: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Derivatives (k, n, p) of the values by the parameters, by central differences that stay inside the bounds."""
    columns = []
    for index in range(theta.shape[-1]):
        step = _STEP * (1 + np.abs(theta[:, index]))
        up, down = theta.copy(), theta.copy()
        up[:, index] = np.minimum(theta[:, index] + step, high[index])
        down[:, index] = np.maximum(theta[:, index] - step, low[index])
        width = np.maximum(up[:, index] - down[:, index], 1e-300)
        columns.append((curve(up) - curve(down)) / width[:, None])
    return np.stack(columns, -1)


def _solve(
    curve: Curve,
    target: np.ndarray,
    starts: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    weights: np.ndarray,
    delta: float,
    steps: int,
    tolerance: float,
) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(all="ignore"):
        theta = np.clip(np.array(starts, dtype=np.float64), *bounds)
        objective = huber(target - curve(theta), weights, delta)
        damping, quiet = np.full(len(theta), 1e-3), np.zeros(len(theta), dtype=int)
        active = np.flatnonzero(np.isfinite(objective))
        for _ in range(steps):
            if not len(active):
                break
            here = theta[active]
            new = np.clip(here + _step(curve, target[active], here, bounds, weights, delta, damping[active]), *bounds)
            value = huber(target[active] - curve(new), weights, delta)
            better = value < objective[active]
            gain = np.where(better, objective[active] - value, 0.0)
            # Rejected steps count as quiet too once the damping is so large that nothing moves.
            still = gain <= tolerance * objective[active] + 1e-30
            still &= better | (damping[active] > 1e6) | (np.abs(new - here) <= 1e-12 * (1 + np.abs(here))).all(-1)
            quiet[active] = np.where(still, quiet[active] + 1, 0)
            theta[active[better]], objective[active[better]] = new[better], value[better]
            damping[active] = np.clip(np.where(better, damping[active] * 0.2, damping[active] * 5), 1e-12, 1e12)
            active = active[quiet[active] < 2]
    return theta, objective


def _step(
    curve: Curve,
    target: np.ndarray,
    theta: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    weights: np.ndarray,
    delta: float,
    damping: np.ndarray,
) -> np.ndarray:
    residuals = target - curve(theta)
    slopes = np.nan_to_num(jacobian(curve, theta, *bounds), posinf=0.0, neginf=0.0)
    scale = weights * np.minimum(1.0, delta / np.maximum(np.abs(residuals), 1e-300))
    downhill = np.einsum("kn,knp->kp", scale * residuals, slopes)
    # A parameter at its bound that wants out is held there.
    held = ((theta <= bounds[0]) & (downhill < 0)) | ((theta >= bounds[1]) & (downhill > 0))
    slopes = np.where(held[:, None, :], 0.0, slopes)
    hessian = np.einsum("kn,knp,knq->kpq", scale, slopes, slopes)
    diagonal = np.einsum("kpp->kp", hessian)
    lifted = damping[:, None] * diagonal + np.maximum(1e-14 * diagonal.max(-1, keepdims=True), 1e-300)
    hessian = hessian + lifted[..., None] * np.eye(theta.shape[-1])
    step = np.linalg.solve(hessian, np.where(held, 0.0, downhill)[..., None])[..., 0]
    return np.where(np.isfinite(step), step, 0.0)
