"""`pipelines/adawac.py --quick`: files, the table's structure, equal conditions; not that a method wins."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def cohort(pipeline):
    return pipeline.load_phantoms(train=4, test=1)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a quarter of a minute on an idle core; the limit is for busy ones
def test_a_quick_run_leaves_a_record_for_each_method_and_seed_a_table_and_pictures(out, records, pipeline):
    assert {(r["method"], r["seed"]) for r in records} == {(m, s) for m in pipeline.METHODS for s in (0, 1)}
    assert {"results.json", "results.md"} <= {path.name for path in out.iterdir()}
    assert not list(out.rglob("*.part*"))
    content = json.loads((out / "results.json").read_text())
    assert len(content["rows"]) == 3 * len(pipeline.METHODS)
    assert {w["method"] for w in content["weights"]} == {"adawac", "aligned"}
    for record in records:
        assert np.mean(record["losses"][-10:]) < np.mean(record["losses"][:5]), record["method"]
        assert len(record["cases"]) == 3


@pytest.mark.slow
def test_a_second_call_reads_what_is_there(out, pipeline, monkeypatch):
    before = (out / "results.md").read_text()
    monkeypatch.setattr(pipeline, "train", None)  # calling it would fail
    pipeline.main(["--out", str(out), "--quick"])
    assert (out / "results.md").read_text() == before


def test_methods_see_the_same_batches_and_other_seeds_others(pipeline, cohort):
    budget = pipeline.Budget(steps=2, batch=4)
    first, again, other = (list(pipeline.draw_batches(cohort.train, budget, seed)) for seed in (1, 1, 2))
    assert all(a.equal(b) for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=True))
    assert not first[0][0].equal(other[0][0])
    assert first[0][0].shape == (8, 1, 32, 32)


def test_every_slice_comes_once_before_any_comes_twice(pipeline, cohort):
    count = len(cohort.train.names)
    batches = pipeline.draw_batches(cohort.train, pipeline.Budget(steps=count // 5, batch=5), seed=0)
    seen = torch.cat([ids for _, _, ids, _ in batches])
    assert sorted(seen.tolist()) == list(range(count))


def test_image_and_label_are_shown_alike_and_quarter_turns_are_exact(pipeline):
    random = np.random.default_rng(0)
    label = torch.from_numpy(random.integers(0, 2, (16, 1, 8, 8)))
    matrices = pipeline.draw_views(random, 16)
    views, ids = pipeline.show(label.float(), label, matrices)
    right = (matrices[:, :2, :2].abs().round() - matrices[:, :2, :2].abs()).abs().flatten(1).amax(1) < 1e-6
    assert right.any()
    torch.testing.assert_close(views[right], ids[right].float(), rtol=0, atol=1e-4)
    assert set(np.unique(ids)) == {0, 1}
    assert (views[~right].round() == ids[~right]).float().mean() > 0.8


def test_fixed_weights_are_those_of_the_method(pipeline, cohort):
    labelled = (cohort.train.labels > 0).flatten(1).any(1)
    expected = {"erm": torch.ones(80), "acr": torch.full((80,), 0.5), "pseudo": labelled.float()}
    for method, weights in expected.items():
        loss = pipeline.MethodLoss(method, cohort.train, 0.0, 2.0).adaptive
        torch.testing.assert_close(loss.sample_weights()[:, 0], weights)
        assert not loss.learn_weights


@pytest.mark.parametrize("backbone", ["unet", "transformer"])
def test_erm_is_dice_and_cross_entropy_of_both_views_and_trimming_leaves_out_slices_without_label(
    pipeline, cohort, backbone
):
    budget = pipeline.Budget(steps=1, batch=6, channels=(4, 8, 8))
    network = pipeline.build_network(backbone, cohort, budget, 0)
    batch = next(pipeline.draw_batches(cohort.train, budget, 0))
    outputs = network(batch[0])
    each = torch.nn.functional.cross_entropy(outputs[0], batch[1][:, 0], reduction="none").flatten(1).mean(1)
    dice = pipeline.MethodLoss("trim-train", cohort.train, 0.0, 1.0).adaptive(
        outputs[0], batch[1], outputs[1], batch[2]
    )
    erm = pipeline.MethodLoss("erm", cohort.train, 0.0, 1.0)(outputs, batch)
    torch.testing.assert_close(erm, (dice + each.mean()) / 2)
    one = pipeline.MethodLoss("one-view", cohort.train, 0.0, 1.0)
    first = [part[:6] for part in (outputs[0], batch[1], outputs[1])]
    expected = pipeline.MethodLoss("erm", cohort.train, 0.0, 1.0).adaptive(
        *(torch.cat((p, p)) for p in first), batch[2]
    )
    torch.testing.assert_close(one(outputs, batch), expected)
    trimmed = pipeline.MethodLoss("trim-train", cohort.train, 0.0, 1.0)(outputs, batch)
    kept = (batch[1] > 0).flatten(1).any(1).view(2, 6).any(0).repeat(2)
    torch.testing.assert_close(trimmed, (dice + each[kept].mean()) / 2)


def test_subsets_hold_what_their_names_say(pipeline, cohort):
    slices = cohort.train
    pick = {name: pipeline.choose_subset(slices, name) for name in (*pipeline.SUBSETS, "volumes-1")}
    assert pick["full"].tolist() == list(range(80))
    assert set(slices.volumes[pick["half-volume"]]) == {0, 2}
    assert set(slices.volumes[pick["volumes-1"]]) == {0}
    for name in ("half-volume", "half-slice", "half-slice-sparse"):
        assert len(pick[name]) == 40
        assert len(set(pick[name])) == 40
    extra = np.setdiff1d(pick["half-volume-sparse"], pick["half-volume"])
    assert len(extra)
    assert not slices.dense[extra].any()
    assert slices.dense[pick["half-slice-sparse"]].mean() < 0.5 * slices.dense.mean()
    assert slices.dense[pick["half-slice-sparse"]].sum() >= 4


def test_lambda_makes_both_losses_alike_at_the_start_and_is_kept(pipeline, cohort, tmp_path):
    budget = pipeline.Budget(batch=8, channels=(4, 8, 8))
    comparison = pipeline.Comparison("phantom", "unet", "full")
    weight = pipeline.find_lambda(comparison, cohort, budget, tmp_path)
    network = pipeline.build_network("unet", cohort, budget, 0)
    loss = pipeline.MethodLoss("acr", cohort.train, 0.0, weight).adaptive
    images, labels, ids, _ = next(pipeline.draw_batches(cohort.train, budget, 0))
    logits, features = network(images)
    loss(logits, labels, features, ids)
    assert loss.last["ce"].mean() == pytest.approx(loss.last["consistency"].mean().item(), rel=0.3)
    assert pipeline.find_lambda(comparison, None, budget, tmp_path) == weight


def test_real_images_are_cut_into_slices_with_their_labels(pipeline, shared_data):
    hippocampus = pipeline.load_hippocampus(shared_data, train=2)
    assert hippocampus.train.images.shape[1:] == (1, 48, 48)
    assert len(hippocampus.test) == 37
    assert 0.2 < hippocampus.train.dense.mean() < 0.8
    assert set(hippocampus.train.labels.unique().tolist()) == {0, 1, 2}


def test_the_slab_of_the_other_patient_lies_as_the_training_volume_does(pipeline, shared_data):
    pytest.importorskip("SimpleITK")
    abdomen = pipeline.load_abdomen(shared_data)
    for slices in (abdomen.train, abdomen.test[0]):
        # Liver on the one side, spleen on the other; soft tissue is brighter than the mean of the volume.
        columns = [np.nonzero(slices.labels.numpy() == c)[3].mean() for c in (1, 2)]
        assert columns[0] + 10 < columns[1]
        assert slices.images[slices.labels == 1].mean() > 0.5


def test_real_images_need_a_data_folder(pipeline, capsys):
    with pytest.raises(SystemExit):
        pipeline.main(["--out", "unused"])
    assert "--data is needed" in capsys.readouterr().err


def test_some_methods_can_be_chosen_and_erm_comes_along(pipeline, tmp_path, monkeypatch):
    run = []
    monkeypatch.setattr(pipeline, "run_comparison", lambda comparison, *_: run.append(comparison.methods) or [])
    monkeypatch.setattr(pipeline, "write_report", lambda *_: "")
    pipeline.main(["--out", str(tmp_path), "--quick", "--methods", "adawac", "trim-train"])
    assert run == [["erm", "trim-train", "adawac"]]


def _record(name: str, method: str, seed: int) -> dict:
    values = np.random.default_rng([seed, len(method)]).random(2)
    cases = {
        case: {"dice": value, "hd95": 1 / value, "false_slices": 0.0} for case, value in zip("ab", values, strict=True)
    }
    return {"set": name, "method": method, "seed": seed, "settings": {"lambda": 1.0}, "course": [], "cases": cases}


@pytest.mark.parametrize(
    ("runs", "written"),
    [
        ({"hippocampus-unet-volumes-1": ("erm", "adawac")}, {"differences.png", "efficiency.png"}),
        ({"hippocampus-unet-half-slice-sparse-960": ("erm", "adawac")}, {"differences.png"}),
        ({"abdomen-unet-full": "six", "hippocampus-transformer-full": ("erm", "acr", "adawac")}, {"differences.png"}),
    ],
)
def test_pictures_are_drawn_whichever_sets_were_chosen(pipeline, tmp_path, runs, written):
    pytest.importorskip("matplotlib")
    methods = {name: pipeline.SIX if some == "six" else some for name, some in runs.items()}
    records = [_record(name, m, seed) for name, some in methods.items() for m in some for seed in (0, 1)]
    report = pipeline.write_report(tmp_path, records)
    assert {path.name for path in tmp_path.glob("*.png")} == written
    assert all(f"### {name}" in report.read_text() for name in runs)
