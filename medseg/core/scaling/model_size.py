"""Laws of two quantities: model and data, encoder and decoder, model and steps.

    Chinchilla    L = E + A N^-alpha + B D^-beta
    bivariate     L = alpha (N0/Ne)^pe (N0/Nd)^pd + Linf
    OpenAI        L = (Nc/N)^aN + (Sc/Smin)^aS

Sources: Hoffmann et al., "Training Compute-Optimal Large Language Models" (2022), with the fit of Besiroglu et al.,
"Chinchilla Scaling: A replication attempt" (2024); Ghorbani et al., "Scaling Laws for Neural Machine Translation"
(2021); Kaplan et al., "Scaling Laws for Neural Language Models" (2020) and Su et al., "Unraveling the Mystery of
Scaling Laws: Part I" (2024). For patch size and batch size at a fixed number of voxels a step, the first form serves
with those two as inputs. A, B and E trade off against each other: read predictions and optima, not them.
"""

from __future__ import annotations

import itertools

import numpy as np

from medseg.core.scaling.law import ScalingLaw, amplitude, exponent, floor

_SHARES = (0.0, 0.3, 0.6, 0.9)
_SLOPES = (0.1, 0.25, 0.5, 1.0)


class ChinchillaLaw(ScalingLaw):
    """Loss over model size N and data D: `E + A N^-alpha + B D^-beta`.

    Example:
        >>> grid = np.array([(n, d) for n in (1e6, 4e6, 16e6) for d in (20, 80, 320)])
        >>> loss = 0.05 + 30 * grid[:, 0] ** -0.4 + 0.8 * grid[:, 1] ** -0.5
        >>> fit = ChinchillaLaw().fit(grid, loss, bootstrap=0)
        >>> {name: round(value, 3) for name, value in fit.params.items()}
        {'E': 0.05, 'A': 30.0, 'B': 0.8, 'alpha': 0.4, 'beta': 0.5}
    """

    name = "Chinchilla law"
    columns = ("N", "D")
    parameters = (floor("E"), amplitude("A"), amplitude("B"), exponent("alpha"), exponent("beta"))

    def log_curve(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Logarithm of the law at inputs (n, 2) for parameters (k, p)."""
        level, a, b, alpha, beta = (theta[:, i, None] for i in range(5))
        model, data = np.log(x).T
        return np.log(level + np.exp(a - alpha * model) + np.exp(b - beta * data))

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Floors, exponents and shares of the two terms on a grid, amplitudes to suit them."""
        found = []
        for share, alpha, beta, part in itertools.product(_SHARES, _SLOPES, _SLOPES, (0.2, 0.5, 0.8)):
            rest = np.log(y - share * y.min())
            a = np.median(rest + alpha * np.log(x[:, 0])) + np.log(part)
            b = np.median(rest + beta * np.log(x[:, 1])) + np.log(1 - part)
            found.append((share * y.min(), a, b, alpha, beta))
        return np.array(found)


class BivariateLaw(ScalingLaw):
    """Loss over the sizes of encoder and decoder: `alpha (N0/Ne)^pe (N0/Nd)^pd + Linf`.

    The widths of a U-Net are coupled by its skips: count the convolution that takes the concatenation to the decoder.

    Args:
        reference: N0, the size to which both are compared; it scales alpha alone.
    """

    name = "bivariate law"
    columns = ("Ne", "Nd")
    parameters = (floor("Linf"), amplitude("alpha"), exponent("pe"), exponent("pd"))

    def __init__(self, reference: float = 1e6) -> None:
        if not reference > 0:
            raise ValueError(f"reference must be above 0, got {reference!r}")
        self.reference = float(reference)
        super().__init__()

    def settings(self) -> dict[str, float]:
        """Arguments with which the law was built."""
        return {"reference": self.reference}

    def log_curve(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Logarithm of the law at inputs (n, 2) for parameters (k, p)."""
        level, size, pe, pd = (theta[:, i, None] for i in range(4))
        encoder, decoder = np.log(x / self.reference).T
        return np.log(level + np.exp(size - pe * encoder - pd * decoder))

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Floors and exponents on a grid, amplitudes to suit them."""
        found = []
        encoder, decoder = np.log(x / self.reference).T
        for share, pe, pd in itertools.product(_SHARES, _SLOPES, _SLOPES):
            rest = np.log(y - share * y.min()) + pe * encoder + pd * decoder
            found.append((share * y.min(), np.median(rest), pe, pd))
        return np.array(found)


class OpenAILaw(ScalingLaw):
    """Loss over model size N and smallest number of steps: `(Nc/N)^aN + (Sc/Smin)^aS`.

    Steps taken at batch size B count as `Smin = S/(1 + Bcrit/B)`, see `CriticalBatchLaw`. The published constants
    (aN 0.076, aS 0.76, ...) hold for their data alone and have to be fitted anew.
    """

    name = "OpenAI law"
    columns = ("N", "Smin")
    parameters = (amplitude("Nc"), exponent("aN"), amplitude("Sc"), exponent("aS"))

    def log_curve(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Logarithm of the law at inputs (n, 2) for parameters (k, p)."""
        size, alpha, steps, beta = (theta[:, i, None] for i in range(4))
        model, taken = np.log(x).T
        return np.logaddexp(alpha * (size - model), beta * (steps - taken))

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Exponents and shares of the two terms on a grid, constants to suit them."""
        found = []
        for alpha, beta, part in itertools.product((0.05, *_SLOPES), (*_SLOPES, 1.5), (0.2, 0.5, 0.8)):
            size = np.median(np.log(x[:, 0]) + np.log(part * y) / alpha)
            steps = np.median(np.log(x[:, 1]) + np.log((1 - part) * y) / beta)
            found.append((size, alpha, steps, beta))
        return np.array(found)
