"""FRUGAL: golden values with given selections, its limits, its draws, and the memory of its state."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.optim import FrugalAdamW
from tests.core.optim.golden import find_golden, load_golden, replay

SETTINGS = {
    "columns": {"selection": "columns", "density": 0.4},
    "rows": {"selection": "rows", "density": 0.5},
    "randk": {"selection": "entries", "density": 0.3},
    "block_ascending": {"selection": "block", "density": 1 / 3},
    "block_sgd_inactive": {"selection": "block", "density": 1 / 3, "state_free": "sgd", "state_free_lr_scale": 0.5},
}
FILES = [(key, path) for key in SETTINGS for path in find_golden(f"frugal_{key}_s*.npz")]
GAP = 3


def frugal_with_given_parts(golden, weights, **options):
    names = {id(weight): name for name, weight in weights.items()}

    class Given(FrugalAdamW):
        def _places(self, p, grad, group, draw):
            chosen = torch.from_numpy(golden[f"sel_{names[id(p)]}"][draw * GAP])
            if group["selection"] == "block":
                return torch.empty(0) if chosen[0] else None
            return (chosen[0] * grad.shape[1] + chosen[1] if chosen.ndim > 1 else chosen).int()

    return Given(weights.values(), lr=1e-2, weight_decay=0.1, update_gap=GAP, **options)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize(("key", "path"), FILES, ids=[path.stem for _, path in FILES])
def test_the_published_numbers_come_out(key, path, foreach):
    golden = load_golden(path)
    replay(lambda weights: frugal_with_given_parts(golden, weights, **SETTINGS[key], foreach=foreach), golden)


def run(make, steps=7, shapes=((6, 2, 3), (5, 4), (7,))):
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, torch.Size(s).numel()).reshape(s)) for s in shapes]
    optimizer = make(weights)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return torch.cat([weight.detach().flatten() for weight in weights]), optimizer


@pytest.mark.parametrize("selection", ["block", "columns", "rows", "entries"])
def test_at_density_1_it_is_adamw(selection):
    ours, _ = run(lambda w: FrugalAdamW(w, lr=0.01, weight_decay=0.1, density=1.0, selection=selection, update_gap=2))
    theirs, _ = run(lambda w: torch.optim.AdamW(w, lr=0.01, weight_decay=0.1))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("selection", ["block", "columns", "rows", "entries"])
def test_at_density_0_matrices_follow_the_sign_without_state(selection):
    shapes = ((6, 2, 3),)
    found, optimizer = run(lambda w: FrugalAdamW(w, lr=0.5, density=0.0, selection=selection), 1, shapes)
    start = torch.linspace(-1, 1, 36)
    sign = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0)).sign().flatten()
    torch.testing.assert_close(found, start - 0.5 * sign)
    assert all(set(state) == {"step", "since_draw"} for state in optimizer.state.values())


def count_state(optimizer):
    moments = [s[n].numel() for s in optimizer.state.values() for n in ("exp_avg", "exp_avg_sq") if n in s]
    return sum(moments)


@settings(deadline=None, max_examples=25)
@given(density=st.floats(0.05, 0.95), selection=st.sampled_from(["columns", "rows", "entries"]))
def test_the_moments_are_two_density_numbers_a_weight(density, selection):
    shapes = ((40, 20), (20, 4, 5))
    _, optimizer = run(lambda w: FrugalAdamW(w, density=density, selection=selection), 2, shapes)
    lines = {"columns": 20, "rows": 20, "entries": 400}[selection]  # of the smaller matrix: rounding by half a line
    assert abs(count_state(optimizer) / (2 * 1200) - density) <= 0.5 / lines + 1e-9


def test_blocks_keep_to_the_density_unless_one_alone_exceeds_it():
    shapes = [(10, 10)] * 8
    _, optimizer = run(lambda w: FrugalAdamW(w, density=0.25), 1, shapes)
    assert count_state(optimizer) == 2 * 200
    _, optimizer = run(lambda w: FrugalAdamW(w, density=0.01), 1, shapes)
    assert count_state(optimizer) == 2 * 100


def test_every_part_gets_its_turn_and_moments_start_anew():
    seen = []
    weight = torch.nn.Parameter(torch.zeros(8, 6))
    optimizer = FrugalAdamW([weight], selection="columns", density=0.5, update_gap=2)
    for _ in range(20):
        weight.grad = torch.ones(8, 6)
        optimizer.step()
        state = optimizer.state[weight]
        seen.append(tuple(state["places"].tolist()))
        assert state["since_draw"] == 1 + (len(seen) - 1) % 2
        torch.testing.assert_close(state["exp_avg"], torch.full((8, 3), 0.1 if len(seen) % 2 else 0.19))
    assert all(seen[i] == seen[i + 1] for i in range(0, 20, 2))
    assert len(set(seen)) > 3
    assert {column for places in seen for column in places} == set(range(6))


def test_the_draws_depend_on_the_seed_alone():
    make = [lambda w, s=s: FrugalAdamW(w, lr=0.1, selection="entries", update_gap=2, seed=s) for s in (0, 0, 1)]
    first, again, other = (run(m)[0] for m in make)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": "svd"}, "selection must be one of 'block', 'columns', 'rows', 'entries', got 'svd'"),
        ({"state_free": "lion"}, "state_free must be one of"),
        ({"density": 1.5}, r"density must be in \[0, 1\], got 1.5"),
        ({"update_gap": 0}, "update_gap must be a whole number of at least 1, got 0"),
        ({"capturable": True}, "capturable must be False"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FrugalAdamW([torch.nn.Parameter(torch.ones(2, 2))], **options)
