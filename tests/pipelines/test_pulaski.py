"""`pipelines/pulaski.py --quick`: files, the table's structure and losses that fall; not that a method wins."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch


@pytest.mark.slow
def test_a_quick_run_leaves_a_record_for_each_run_a_table_and_pictures(out, pipeline, records):
    assert {(r["method"], r["seed"]) for r in records} == {(m, s) for m in pipeline.METHODS for s in (0, 1)}
    pictures = {"discs-ftl.png", "discs-energy.png", "discs-energy-affine.png"}
    assert pictures | {"results.json", "results.md"} <= {path.name for path in out.iterdir()}
    assert not list(out.rglob("*.part*"))
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert len(rows) == len(pipeline.METRICS) * len(pipeline.METHODS)
    lines = (out / "results.md").read_text().splitlines()
    assert {line.count("|") for line in lines if line.startswith("|")} == {7}


@pytest.mark.slow
def test_losses_of_distances_go_down(records):
    for record in records:
        if record["method"].startswith(("energy", "sinkhorn")):
            first, last = np.mean(record["losses"][:5]), np.mean(record["losses"][-5:])
            assert last < first, record["method"]


@pytest.mark.slow
def test_a_second_call_reads_what_is_there(out, pipeline, monkeypatch):
    before = (out / "results.md").read_text()
    monkeypatch.setattr(pipeline, "run_method", None)  # calling it would fail
    pipeline.main(["--out", str(out), "--quick"])
    assert (out / "results.md").read_text() == before


def test_methods_see_the_same_batches_and_start_from_the_same_weights(pipeline):
    images = pipeline.load_discs(cases=2, side=24)
    first, again, other = (next(pipeline.draw_batches(images, 1, seed)) for seed in (0, 0, 1))
    assert first["image"].shape == (4, 1, 24, 24)
    assert first["label"].shape == (4, 2, 24, 24)
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"])
    networks = [pipeline.build_network(images, 0, activation=a) for a in (True, False)]
    for one, two in zip(*(n.parameters() for n in networks), strict=True):
        assert torch.equal(one, two)


def test_the_two_discs_stand_out_as_much_and_share_nothing(pipeline):
    sample = pipeline.load_discs(cases=1).train[0]
    left, right = sample.annotations.astype(bool)
    assert not (left & right).any()
    assert sample.image[0][left].mean() == pytest.approx(-sample.image[0][right].mean(), abs=0.3)


def test_samples_that_are_the_raters_are_perfect(pipeline):
    sample = pipeline.load_discs(cases=1).train[0]
    found = pipeline.measure(torch.from_numpy(sample.annotations).float(), sample)
    assert found["ged"] == pytest.approx(0, abs=1e-6)
    assert found["best_dice"] == found["matched_dice"] == 1
    assert found["inter_rater_dice"] == 0


def test_samples_follow_one_of_two_raters_or_neither(pipeline):
    sample = pipeline.load_discs(cases=1).train[0]
    one, two = torch.from_numpy(sample.annotations).float()
    masks = torch.stack([one, one, two, one + two])  # the last follows neither, though its Dice is 0.67 with both
    shares = pipeline.share_of_modes(lambda image, n: masks[torch.arange(n) % 4][None], sample)
    assert shares == {"first_mode": 0.5, "second_mode": 0.25}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_modes_that_are_not_nested_are_both_sampled_by_energy_alone(pipeline):
    threads, found = torch.get_num_threads(), {}
    torch.set_num_threads(1)  # as the results in README.md, since another number rounds otherwise
    for method in ("ftl", "energy", "energy-affine"):
        record, _ = pipeline.run_method(method, pipeline.load_discs(), pipeline.Budget(), seed=0)
        cases = record["cases"].values()
        found[method] = {key: np.mean([case[key] for case in cases]) for key in ("ged", "first_mode", "second_mode")}
    torch.set_num_threads(threads)
    assert 0.3 < found["energy"]["first_mode"] < 0.7
    assert 0.3 < found["energy"]["second_mode"] < 0.7
    assert found["energy"]["ged"] < 0.5 * min(found["ftl"]["ged"], found["energy-affine"]["ged"])


def test_an_affine_head_nests_its_samples_after_training_too(pipeline):
    images = pipeline.load_discs(cases=1, side=24)
    draw, _ = pipeline.train_probabilistic("energy-affine", images, pipeline.Budget(train_samples=2), 3, 0)
    with torch.no_grad():
        probabilities = draw(torch.from_numpy(images.test[0].image)[None], 3)[0]
    logits = probabilities.double().logit()
    assert (logits[0] - logits[1]).std() < 1e-3


def test_an_ensemble_shares_the_steps_and_answers_with_its_members_in_turn(pipeline):
    images = pipeline.load_discs(cases=1, side=24)
    draw, losses = pipeline.train_ensemble(images, pipeline.Budget(), 10, 0)
    assert len(losses) == 10
    with torch.no_grad():
        answers = draw(torch.from_numpy(images.test[0].image)[None], 7)[0]
    assert torch.equal(answers[0], answers[5])
    assert not torch.equal(answers[0], answers[1])


def test_the_growing_brains_need_a_data_folder(pipeline, capsys):
    with pytest.raises(SystemExit):
        pipeline.main(["--out", "unused"])
    assert "--data is needed" in capsys.readouterr().err


def test_the_growing_brains_are_read_with_seven_raters_where_they_are(pipeline, shared_data):
    images = pipeline.SETS["growth"](shared_data)
    assert (len(images.train), len(images.test)) == (21, 6)
    assert images.train[0].annotations.shape == (7, 128, 128)
