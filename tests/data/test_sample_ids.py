"""Tests of `medseg.data.sample_ids`."""

from __future__ import annotations

from pathlib import Path

import pytest
from monai.data import CacheDataset, DataLoader

from medseg.data import hash_samples, load_datalist, sample_names, with_sample_ids, write_phantom_dataset

LIST = [{"image": f"cases/{name}.nii.gz", "label": 1} for name in ("c", "a", "b")]


def test_ids_are_positions_and_names_are_file_names():
    before = [dict(item) for item in LIST]
    items = with_sample_ids(LIST)
    assert [item["sample_id"] for item in items] == [0, 1, 2]
    assert [item["sample_name"] for item in items] == ["c.nii.gz", "a.nii.gz", "b.nii.gz"]
    assert all(item["label"] == 1 for item in items)
    assert before == LIST, "the list that came in is left alone"
    assert with_sample_ids(items) == items, "numbering twice changes nothing"


def test_texts_that_are_there_are_taken_as_names():
    items = [{"sample_name": "one", "image": [0.0]}, {"sample_id": "two"}, {"image": [Path("x/three.nii"), "x/t1.nii"]}]
    assert [item["sample_name"] for item in with_sample_ids(items)] == ["one", "two", "three.nii"]


def test_the_list_of_a_folder_gets_the_names_of_its_cases_and_keeps_ids_through_loaders(tmp_path):
    write_phantom_dataset(tmp_path, layout="plain", cases=3, seed=0)
    items = with_sample_ids(load_datalist(str(tmp_path)))
    assert [item["sample_name"] for item in items] == [item["sample_id"] for item in load_datalist(str(tmp_path))]
    loader = DataLoader(CacheDataset(items, progress=False), batch_size=2, shuffle=True)
    seen = [number for batch in loader for number in batch["sample_id"].tolist()]
    assert sorted(seen) == [0, 1, 2]


@pytest.mark.parametrize(
    ("items", "match"),
    [
        (
            [{"image": "a/x.nii"}, {"image": "b/x.nii"}],
            "items 0 and 1 both have the name 'x.nii'.*different sample_name",
        ),
        ([{"image": "x.nii"}, {"image": "y.nii", "sample_id": 0}], r"item 1 \('y.nii'\) has the sample_id 0 already"),
        ([{"image": "x.nii"}, {"image": [0.5]}], "item 1 has no name: give it a sample_name"),
        ([{"label": "x.nii"}], "item 0 has no name"),
    ],
)
def test_lists_that_leave_samples_in_doubt_are_refused(items, match):
    with pytest.raises(ValueError, match=match):
        with_sample_ids(items)


def test_names_follow_the_ids_bin_by_bin():
    items = with_sample_ids(LIST[:2])
    assert sample_names(items) == ["c.nii.gz", "a.nii.gz"]
    assert sample_names(items, bins=2)[3] == "a.nii.gz, bin 1"
    with pytest.raises(ValueError, match="pass the list through with_sample_ids first"):
        sample_names(LIST)
    with pytest.raises(ValueError, match="pass the list through with_sample_ids first"):
        sample_names(items[1:])
    with pytest.raises(ValueError, match="bins must be at least 1"):
        sample_names(items, bins=0)


def test_the_hash_tells_lists_apart_by_names_and_order():
    first = hash_samples(with_sample_ids(LIST))
    assert first == hash_samples(with_sample_ids([{**item, "label": 2} for item in LIST]))
    other = [LIST[::-1], LIST[:2], [{"sample_name": "c.nii.gz1:a.nii.gz"}]]
    assert len({first, *(hash_samples(with_sample_ids(items)) for items in other)}) == 4
