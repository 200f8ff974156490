"""What a metric says about a structure that the reference, the prediction, or both do not hold.

Three cases are told apart, and each has its own rule:

* **both empty**: the structure is in neither mask. By default there is nothing to count (nan);
* **missed**: only the reference holds it. By default the worst value;
* **hallucinated**: only the prediction holds it. By default the worst value.

The best overlap is 1 and the worst 0; the best distance is 0 mm and the worst the diagonal of the image in mm. A missed
structure therefore never improves an average, which it does where its distance is nan or is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Rule = Literal["nan", "best", "worst"] | float
CaseName = Literal["present", "both_empty", "missed", "hallucinated"]

CASES: tuple[CaseName, ...] = ("present", "both_empty", "missed", "hallucinated")
_WORDS = ("nan", "best", "worst")


@dataclass(frozen=True)
class EmptyPolicy:
    """The rules for empty masks.

    Each rule is `"nan"` (do not count), `"best"`, `"worst"`, or a finite number that is taken as it is.

    Args:
        both: neither mask holds the structure; default `"nan"`, nothing to count.
        missed: the reference alone holds it; default `"worst"`.
        hallucinated: the prediction alone holds it; default `"worst"`.

    Raises:
        ValueError: a rule is neither one of the words nor a number.

    Example:
        >>> EmptyPolicy(both="best").value("both_empty", best=1.0, worst=0.0)
        1.0
        >>> EmptyPolicy.build("both=best,missed=nan")
        EmptyPolicy(both='best', missed='nan', hallucinated='worst')
    """

    both: Rule = "nan"
    missed: Rule = "worst"
    hallucinated: Rule = "worst"

    def __post_init__(self) -> None:
        for field in fields(self):
            rule = getattr(self, field.name)
            number = isinstance(rule, (int, float)) and not isinstance(rule, bool) and math.isfinite(rule)
            if not number and rule not in _WORDS:
                raise ValueError(
                    f"empty policy: {field.name}={rule!r} is not a rule; use 'nan', 'best', 'worst' or a finite number"
                )

    @classmethod
    def build(cls, policy: EmptyPolicy | Mapping[str, Rule] | str | None) -> EmptyPolicy:
        """Make a policy from what a configuration or a command line can hold.

        Args:
            policy: a policy; a mapping such as `{"both": "best"}`; a text such as `"both=best,missed=nan"`; None for
                the defaults.

        Returns:
            The policy; rules that are not given keep their default.

        Raises:
            ValueError: an unknown case or rule.
        """
        if isinstance(policy, EmptyPolicy):
            return policy
        rules: dict[str, Any] = _parse(policy) if isinstance(policy, str) else dict(policy or {})
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(rules) - set(known))
        if unknown:
            raise ValueError(f"empty policy: unknown case {', '.join(map(repr, unknown))}; the cases are {known}")
        return cls(**rules)

    def to_dict(self) -> dict[str, Rule]:
        """Give the rules as a mapping that `build` takes."""
        return asdict(self)

    def value(self, case: CaseName, *, best: float, worst: float) -> float:
        """Give the value of a metric for an empty case.

        Args:
            case: `"both_empty"`, `"missed"` or `"hallucinated"`.
            best: the metric's best value, e.g. 1 for Dice, 0 mm for a distance.
            worst: the metric's worst value, e.g. 0 for Dice, the image diagonal in mm for a distance.

        Returns:
            The value, nan where the case does not count.

        Raises:
            ValueError: the case has no rule.
        """
        rules = {"both_empty": self.both, "missed": self.missed, "hallucinated": self.hallucinated}
        if case not in rules:
            raise ValueError(f"case must be one of {', '.join(rules)}, got {case!r}")
        rule = rules[case]
        if isinstance(rule, str):
            return {"nan": math.nan, "best": float(best), "worst": float(worst)}[rule]
        return float(rule)


def name_case(n_pred: int, n_ref: int) -> CaseName:
    """Tell which masks hold a structure, from its voxel counts.

    Args:
        n_pred: voxels in the prediction.
        n_ref: voxels in the reference.

    Returns:
        `"present"` (in both), `"both_empty"`, `"missed"` or `"hallucinated"`.

    Example:
        >>> name_case(0, 12)
        'missed'
    """
    if n_pred and n_ref:
        return "present"
    if n_ref:
        return "missed"
    return "hallucinated" if n_pred else "both_empty"


def _parse(text: str) -> dict[str, Any]:
    rules: dict[str, str | float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        case, sign, rule = (p.strip() for p in part.partition("="))
        if not sign:
            raise ValueError(f"empty policy: {part!r} is not CASE=RULE; write e.g. 'both=best,missed=worst'")
        rules[case] = rule if rule in _WORDS else _number(case, rule)
    return rules


def _number(case: str, rule: str) -> float:
    try:
        return float(rule)
    except ValueError:
        raise ValueError(
            f"empty policy: {case}={rule!r} is not a rule; use 'nan', 'best', 'worst' or a finite number"
        ) from None
