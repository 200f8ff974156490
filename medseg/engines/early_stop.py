"""Foresee the end of a running training from its validations; stop it, or advise to, where that is not good enough.

From the tenth validation on, the curve so far is extrapolated (`medseg.core.scaling.CurveExtrapolator`, a
few seconds on a processor). The run should stop where

    P(last value > incumbent + margin) < threshold

The extrapolation knows nothing of the learning rate. Where the rate falls towards the end, as in almost every bundle,
the last part rises faster than the curve so far says: let a first run advise only, look up what the fall gained, and
give that as a negative `margin` before letting the handler stop anything.

Source: Adriaensen, Rakotoarison, Müller, Hutter, "Efficient Bayesian Learning Curve Extrapolation using Prior-Data
Fitted Networks" (2023), for the rule.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events

from medseg.core.scaling import CurveExtrapolator, stop_advice
from medseg.data import atomic_path

logger = logging.getLogger(__name__)
_LEAST_POINTS = 10


class ExtrapolatingEarlyStop:
    """Handler of a trainer that extrapolates the validation metric to the last epoch.

    `history` holds an entry for every validation: `epoch`, the metric under its name, and from the tenth validation on
    `median`, `lower`, `upper` (of the last value, 90 %), `probability`, `stop`, `reason`; the last is in
    `engine.state.extrapolation` as well. With `output` it is a log that `medseg scaling extrapolate` reads. To go on
    with it in a resumed run, put the handler among the `objects` of `TrainingCheckpoint`, after it in the list.

    Args:
        evaluator: the validation engine, as "@validate::evaluator" in a bundle.
        stop: whether to end the training; by default the handler advises only, in log and history.
        metric: name of the metric; by default the evaluator's key metric.
        incumbent: value to beat, such as that of the model in use; by default the best of this run so far, which with
            few validation cases is a lucky one: the advice is then to stop early.
        margin: gain over the incumbent that is worth it, in the unit of the metric, better being positive; negative
            where a falling learning rate is still to help.
        threshold: stop below this probability of a better end.
        bounds: smallest and largest value of the metric, (0, 1) for Dice.
        increasing: whether larger is better; False for a loss or a distance.
        every: extrapolate at every so many validations.
        output: JSON file for the history, rewritten as a whole after every validation; None writes none.
        extrapolator: settings of the sampler; in a bundle a nested `_target_`.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> evaluator = Engine(lambda engine, batch: None)              # in a training, a MONAI evaluator
        >>> handler = ExtrapolatingEarlyStop(evaluator, stop=True, incumbent=0.9, margin=-0.01)
    """

    def __init__(
        self,
        evaluator: Engine,
        *,
        stop: bool = False,
        metric: str | None = None,
        incumbent: float | None = None,
        margin: float = 0.0,
        threshold: float = 0.05,
        bounds: Sequence[float] = (0.0, 1.0),
        increasing: bool = True,
        every: int = 1,
        output: str | None = None,
        extrapolator: CurveExtrapolator | None = None,
    ) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {threshold!r}; 0.05 is the published one")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if len(bounds) != 2 or not bounds[0] < bounds[1]:
            raise ValueError(f"bounds must be a smaller and a larger number, got {bounds!r}")
        self.evaluator, self.stop, self.metric = evaluator, stop, metric
        self.incumbent, self.margin, self.threshold = incumbent, float(margin), float(threshold)
        self.bounds, self.increasing, self.every = (float(bounds[0]), float(bounds[1])), increasing, every
        self.output = None if output is None else Path(output)
        self.extrapolator = extrapolator or CurveExtrapolator()
        self.history: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        self.evaluator.add_event_handler(Events.COMPLETED, self._on_validation, engine)

    def state_dict(self) -> dict[str, Any]:
        """The history, as plain numbers and texts."""
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a history."""
        self.history = list(state["history"])

    def _on_validation(self, _: Engine, trainer: Engine) -> None:
        name = self.metric or getattr(self.evaluator.state, "key_metric_name", None)
        if name not in self.evaluator.state.metrics:
            known = ", ".join(self.evaluator.state.metrics) or "none"
            raise ValueError(f"metric must be one of the evaluator's ({known}), got {name!r}")
        value = float(self.evaluator.state.metrics[name])
        if not np.isfinite(value):
            return  # a validation with nothing to count
        if not self.bounds[0] <= value <= self.bounds[1]:
            raise ValueError(f"bounds must hold every value of {name}, but it is {value:g} and they are {self.bounds}")
        entry: dict[str, Any] = {"epoch": trainer.state.epoch, name: value}
        self.history = [past for past in self.history if past["epoch"] < trainer.state.epoch] + [entry]
        if len(self.history) >= _LEAST_POINTS and len(self.history) % self.every == 0:
            entry |= self._foresee(name, int(trainer.state.max_epochs or 0))
            logger.info("epoch %d: %s", trainer.state.epoch, entry["reason"])
        trainer.state.extrapolation = entry  # type: ignore[attr-defined]
        self._write()
        # All ranks must leave together, whatever the last digit of their metric.
        if self.stop and idist.broadcast(float(entry.get("stop", False)), src=0):
            trainer.terminate()

    def _foresee(self, name: str, end: int) -> dict[str, Any]:
        epochs, values = ([past[key] for past in self.history] for key in ("epoch", name))
        posterior = self.extrapolator.fit(epochs, values, end, bounds=self.bounds, increasing=self.increasing)
        best = max(values) if self.increasing else min(values)
        advice = stop_advice(
            posterior,
            best if self.incumbent is None else self.incumbent,
            points=len(values),
            threshold=self.threshold,
            margin=self.margin,
        )
        low, middle, high = posterior.quantile([0.05, 0.5, 0.95])[:, 0].tolist()
        found = {"median": middle, "lower": low, "upper": high}
        return found | {"probability": advice.probability, "stop": advice.stop, "reason": advice.reason}

    def _write(self) -> None:
        if self.output is None or idist.get_rank() != 0:
            return
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.output) as part:
            part.write_text(json.dumps(self.history, indent=2, allow_nan=False) + "\n", encoding="utf-8")
