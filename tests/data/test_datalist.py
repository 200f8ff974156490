"""Training folders become lists with stable ids and a stable split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.data import list_images, load_datalist, write_phantom_dataset


@pytest.mark.parametrize("layout", ["plain", "decathlon", "nnunet"])
def test_every_layout_gives_the_same_ids_and_existing_files(tmp_path, layout):
    write_phantom_dataset(tmp_path, layout=layout, cases=6, seed=0)
    samples = load_datalist(str(tmp_path))
    assert len({s["sample_id"] for s in samples}) == 6
    assert all(Path(s["image"]).is_file() and Path(s["label"]).is_file() for s in samples)


def test_the_seeded_split_is_disjoint_complete_and_repeatable(tmp_path):
    write_phantom_dataset(tmp_path, cases=7, seed=0)
    ids = {s["sample_id"] for s in load_datalist(str(tmp_path))}
    folds = [{s["sample_id"] for s in load_datalist(str(tmp_path), "validation", fold=f)} for f in range(5)]
    assert set().union(*folds) == ids
    assert sum(map(len, folds)) == len(ids)
    train = {s["sample_id"] for s in load_datalist(str(tmp_path), "training", fold=2)}
    assert train == ids - folds[2]
    assert [s["sample_id"] for s in load_datalist(str(tmp_path), "validation")] == sorted(folds[0])


def test_a_split_file_decides(tmp_path):
    write_phantom_dataset(tmp_path, cases=4, seed=0)
    ids = [s["sample_id"] for s in load_datalist(str(tmp_path))]
    (tmp_path / "splits.json").write_text(json.dumps({"train": ids[:1], "val": ids[1:]}))
    assert [s["sample_id"] for s in load_datalist(str(tmp_path), "training")] == ids[:1]
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["ghost"], "val": ids}))
    with pytest.raises(ValueError, match="cases that have no files: ghost"):
        load_datalist(str(tmp_path), "training")


def test_nnunet_folds_are_read(tmp_path):
    write_phantom_dataset(tmp_path, layout="nnunet", cases=3, seed=0)
    ids = [s["sample_id"] for s in load_datalist(str(tmp_path))]
    folds = [{"train": ids[1:], "val": ids[:1]}, {"train": ids[:2], "val": ids[2:]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    assert [s["sample_id"] for s in load_datalist(str(tmp_path), "validation", fold=1)] == ids[2:]
    with pytest.raises(ValueError, match=r"fold must be in \[0, 1\]"):
        load_datalist(str(tmp_path), "validation", fold=2)


def test_a_file_without_a_partner_is_named(tmp_path):
    write_phantom_dataset(tmp_path, cases=3, seed=0)
    lonely = sorted((tmp_path / "labels").iterdir())[0]
    lonely.unlink()
    with pytest.raises(ValueError, match=f"without a partner: {lonely.name.removesuffix('.nii.gz')}"):
        load_datalist(str(tmp_path))


def test_folders_that_are_not_understood_are_explained(tmp_path):
    with pytest.raises(ValueError, match="is not understood: expected"):
        load_datalist(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_datalist(str(tmp_path / "none"))
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match="has neither 'channel_names'"):
        load_datalist(str(tmp_path))
    with pytest.raises(ValueError, match="section must be"):
        load_datalist(str(tmp_path), "test")  # type: ignore[arg-type]


def test_list_images_finds_the_images_of_a_training_folder(tmp_path):
    write_phantom_dataset(tmp_path, cases=3, seed=0)
    assert len(list_images(str(tmp_path))) == 3
    assert len(list_images(str(tmp_path / "images"))) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no file that ends in"):
        list_images(str(tmp_path / "empty"))


def test_the_real_split_has_145_and_37_cases(shared_data):
    folder = str(shared_data / "hippocampus_msd")
    assert len(load_datalist(folder, "training")) == 145
    assert len(load_datalist(folder, "validation")) == 37
