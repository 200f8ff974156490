"""The rules for empty masks."""

from __future__ import annotations

import math

import pytest

from medseg.metrics.empty import EmptyPolicy, name_case


def test_by_default_nothing_is_not_counted_and_a_failure_is_worst():
    policy = EmptyPolicy()
    assert math.isnan(policy.value("both_empty", best=0.0, worst=50.0))
    assert policy.value("missed", best=0.0, worst=50.0) == 50.0
    assert policy.value("hallucinated", best=1.0, worst=0.0) == 0.0


def test_a_policy_is_built_from_text_mapping_policy_or_nothing():
    expected = EmptyPolicy(both="best", missed=0.25)
    assert EmptyPolicy.build(" both = best, missed=0.25 ") == expected
    assert EmptyPolicy.build({"both": "best", "missed": 0.25}) == expected
    assert EmptyPolicy.build(expected) is expected
    assert EmptyPolicy.build(None) == EmptyPolicy() == EmptyPolicy.build("")
    assert EmptyPolicy.build(expected.to_dict()) == expected


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("both", "'both' is not CASE=RULE"),
        ("miss=worst", "unknown case 'miss'"),
        ("missed=bad", "'nan', 'best', 'worst'"),
        ({"missed": None}, "missed=None is not a rule"),
        ({"missed": True}, "missed=True is not a rule"),
        ({"missed": math.inf}, "finite number"),
    ],
)
def test_a_wrong_rule_is_named(policy, message):
    with pytest.raises(ValueError, match=message):
        EmptyPolicy.build(policy)


def test_a_present_structure_has_no_rule():
    with pytest.raises(ValueError, match="case must be one of both_empty"):
        EmptyPolicy().value("present", best=1.0, worst=0.0)


def test_cases_are_named_from_counts():
    assert [name_case(*n) for n in ((1, 1), (0, 0), (0, 1), (1, 0))] == [
        "present",
        "both_empty",
        "missed",
        "hallucinated",
    ]
