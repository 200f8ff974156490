"""Tests of the cache of converted networks."""

from __future__ import annotations

import json
import os
import time

import pytest
import torch
from torch import nn

from medseg.inferers.conversion_cache import ConversionCache, cache_folder, folder_size, network_key

MODEL = b"a model"


@pytest.fixture
def cache(tmp_path):
    return ConversionCache(tmp_path / "networks")


def write(folder):
    (folder / "model.xml").write_bytes(MODEL)
    (folder / "model.bin").write_bytes(bytes(1000))


def make_network(**changes) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3, **changes), nn.InstanceNorm2d(2), nn.LeakyReLU(0.1))
    network.register_buffer("shift", torch.zeros(()), persistent=False)
    return network


def test_the_folder_follows_the_environment_variable_and_else_the_system(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEG_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    assert ConversionCache().root == tmp_path / "here" / "networks"
    monkeypatch.delenv("MEDSEG_CACHE")
    assert cache_folder().name in ("medseg", "Cache")


def test_what_was_put_is_got(cache):
    assert cache.get("key") is None
    entry = cache.put("key", write)
    assert (entry / "model.xml").read_bytes() == MODEL
    assert cache.get("key") == entry
    assert cache.get("other") is None
    assert folder_size(cache.root) > 1000


def test_an_entry_that_cannot_be_made_leaves_nothing_behind(cache):
    def fail(folder):
        write(folder)
        raise RuntimeError("no conversion")

    with pytest.raises(RuntimeError, match="no conversion"):
        cache.put("key", fail)
    assert list(cache.root.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "shape", "version"),
    [
        (lambda network: network[0].weight.data[0, 0].add_(1e-6), (1, 8, 8), "2"),
        (lambda network: network.shift.add_(1), (1, 8, 8), "2"),
        (lambda network: setattr(network[2], "negative_slope", 0.2), (1, 8, 8), "2"),
        (lambda network: setattr(network[1], "eps", 1e-3), (1, 8, 8), "2"),
        (lambda network: network.__setitem__(2, nn.ReLU()), (1, 8, 8), "2"),
        (lambda network: None, (1, 8, 16), "2"),
        (lambda network: None, (1, 8, 8), "3"),
    ],
    ids=["weight", "buffer", "slope", "eps", "layer", "window", "version"],
)
def test_whatever_changes_the_conversion_changes_the_key(change, shape, version):
    network = make_network()
    with torch.no_grad():
        change(network)
    assert network_key(network, shape, torch=version) != network_key(make_network(), (1, 8, 8), torch="2")


def test_layout_in_memory_does_not_change_the_key():
    network = make_network().to(memory_format=torch.channels_last)
    assert network_key(network, (1, 8, 8)) == network_key(make_network(), (1, 8, 8))


def test_networks_without_weights_and_of_other_types_have_keys():
    network = nn.Sequential(nn.ReLU())
    network.register_buffer("mask", torch.zeros(0, dtype=torch.bool))
    network.register_buffer("weights", torch.zeros(3, dtype=torch.bfloat16))
    assert len(network_key(network, (1, 8))) == 64


def truncate(entry):
    (entry / "model.bin").write_bytes(bytes(999))


def flip(entry):
    (entry / "model.bin").write_bytes(b"\1" + bytes(999))


def lose(entry):
    (entry / "model.xml").unlink()


def spoil(entry):
    (entry / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [truncate, flip, lose, spoil])
def test_a_damaged_entry_is_removed_and_made_again(cache, damage):
    damage(cache.put("key", write))
    assert cache.get("key") is None
    assert list(cache.root.iterdir()) == []
    assert cache.get("key") is None
    assert cache.get("key") != cache.put("key", write) == cache.get("key")


def test_a_damaged_entry_that_appears_meanwhile_is_replaced(cache):
    def write_slowly(folder):
        write(folder)
        truncate(cache.put("key", write))

    cache.put("key", write_slowly)
    assert (cache.get("key") / "model.bin").stat().st_size == 1000


def test_the_loser_uses_what_the_winner_made(cache):
    def write_slowly(folder):
        write(folder)
        (cache.put("key", write) / "winner").touch()

    entry = cache.put("key", write_slowly)
    assert (entry / "winner").exists()
    assert len(list(cache.root.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    cache = ConversionCache(tmp_path / "file" / "networks")
    assert cache.get("key") is None
    with pytest.raises(OSError, match="file"):
        cache.put("key", write)


def test_entries_unused_for_90_days_go_when_a_new_one_comes_and_other_files_stay(cache):
    day = 24 * 3600
    for key, age in (("old", 91), ("young", 89), ("used", 91)):
        stamp = time.time() - age * day
        os.utime(cache.put(key, write) / "manifest.json", (stamp, stamp))
    cache.get("used")
    (cache.root / "of the user").mkdir()
    abandoned = cache.root / ".key.0.part"
    abandoned.mkdir()
    os.utime(abandoned, (time.time() - 2 * day,) * 2)
    cache.put("new", write)
    assert {p.name for p in cache.root.iterdir()} == {"young", "used", "new", "of the user"}


def test_the_manifest_says_what_the_files_are(cache):
    entry = cache.put("key", write)
    files = json.loads((entry / "manifest.json").read_text())["files"]
    assert set(files) == {"model.xml", "model.bin"}
    assert files["model.bin"][0] == 1000
