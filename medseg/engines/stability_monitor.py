"""Watch a training for signs of divergence: growing attention logits and activations, vanishing gradients.

The handler around `medseg.core.norm.StabilityProbe`: every so many iterations it listens for one iteration, keeps what
it saw and warns. Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities" (ICLR 2024).
"""

from __future__ import annotations

import logging
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from medseg.core.norm.stability import LOGIT_ALARM, StabilityProbe

logger = logging.getLogger(__name__)


class StabilityMonitor:
    """A handler that looks at logits, activations, gradients and weights of each layer now and then.

    `history` holds (iteration, what `StabilityProbe.read` gives); the last is in `engine.state.stability` as well.
    Layers above `max_logit` or with gradients below `min_gradient` are named in a warning of the logger, once each.

    Args:
        model: the network.
        every: iterations between two looks, at least 1.
        max_logit: largest attention logit that passes.
        min_gradient: smallest root mean square of a layer's gradient that passes; Adam's epsilon is 1e-8 by default,
            and a smaller one (1e-15) the remedy.

    Raises:
        ValueError: `every` is below 1.

    Example:
        >>> handler = StabilityMonitor(nn.Linear(1, 1), every=50)
    """

    def __init__(
        self, model: nn.Module, every: int = 100, max_logit: float = LOGIT_ALARM, min_gradient: float = 1e-8
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.model = model
        self.every = every
        self.max_logit = max_logit
        self.min_gradient = min_gradient
        self.history: list[tuple[int, dict[str, dict[str, float]]]] = []
        self._probe: StabilityProbe | None = None
        self._warned: set[tuple[str, str]] = set()

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED(every=self.every), self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self._end)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._stop)

    def _begin(self, engine: Engine) -> None:
        self._probe = StabilityProbe(self.model).__enter__()

    def _end(self, engine: Engine) -> None:
        if self._probe is None:
            return
        found = self._probe.read()
        self._close()
        self.history.append((engine.state.iteration, found))
        engine.state.stability = found  # type: ignore[attr-defined]
        self._warn("max_logit", {n: v for n, v in found["max_logit"].items() if not v <= self.max_logit}, engine)
        small = {n: v for n, v in found["gradient_rms"].items() if not v >= self.min_gradient}
        self._warn("gradient_rms", small, engine)

    def _warn(self, kind: str, layers: dict[str, float], engine: Engine) -> None:
        for name, value in layers.items():
            if (kind, name) not in self._warned:
                self._warned.add((kind, name))
                logger.warning("iteration %d: %s of %s is %.3g", engine.state.iteration, kind, name, value)

    def _stop(self, engine: Engine, error: Exception) -> None:
        self._close()
        raise error

    def _close(self, *_: Any) -> None:
        if self._probe is not None:
            self._probe.__exit__()
            self._probe = None
