"""Number the samples of a training list, so that a table can keep something for each of them.

The number stands in the item itself, so it survives caching datasets, samplers, shuffling and resuming. The name beside
it says which sample that is when a table comes back with another list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any


def with_sample_ids(datalist: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give every item its position as the integer `sample_id`, and a text `sample_name`.

    Do this before a dataset is made of the list. The name is, in this order: the item's `sample_name`, its `sample_id`
    where that is a text (as `load_datalist` gives), the file name of its `image` (the first of several).

    Args:
        datalist: items of a training list, in the order that decides the ids.

    Returns:
        Copies of the items.

    Raises:
        ValueError: an item has no name, two have the same, or one holds another integer `sample_id` already.

    Example:
        >>> with_sample_ids([{"image": "a/one.nii.gz"}, {"image": "a/two.nii.gz"}])
        [{'image': 'a/one.nii.gz', 'sample_id': 0, 'sample_name': 'one.nii.gz'},
         {'image': 'a/two.nii.gz', 'sample_id': 1, 'sample_name': 'two.nii.gz'}]
    """
    items = []
    place: dict[str, int] = {}
    for position, item in enumerate(datalist):
        name, number = _name_of(item, position), item.get("sample_id")
        if name in place:
            raise ValueError(
                f"datalist: items {place[name]} and {position} both have the name {name!r}, so nothing could be kept "
                "for them apart; give every item a different sample_name"
            )
        if not isinstance(number, str | None) and number != position:
            raise ValueError(
                f"datalist: item {position} ({name!r}) has the sample_id {number} already; leave sample_id out, or "
                "number the whole list in its order from 0 on"
            )
        place[name] = position
        items.append({**item, "sample_id": position, "sample_name": name})
    return items


def sample_names(datalist: Iterable[Mapping[str, Any]], *, bins: int = 1) -> list[str]:
    """List the names that belong to the sample ids 0, 1, ... of a list that `with_sample_ids` gave.

    Args:
        datalist: items with `sample_id` and `sample_name`.
        bins: number of bins that `medseg.transforms.BinSampleIdd` divides each sample into; 1 where it is not used.

    Returns:
        As many names as there are ids: items times bins.

    Raises:
        ValueError: the list does not come from `with_sample_ids`, or bins is below 1.

    Example:
        >>> sample_names(with_sample_ids([{"image": "a.nii"}, {"image": "b.nii"}]), bins=2)
        ['a.nii, bin 0', 'a.nii, bin 1', 'b.nii, bin 0', 'b.nii, bin 1']
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    items = list(datalist)
    if odd := [i for i, item in enumerate(items) if item.get("sample_id") != i or "sample_name" not in item]:
        raise ValueError(
            f"datalist: item {odd[0]} has no sample_name, or a sample_id that is not its position; pass the list "
            "through with_sample_ids first"
        )
    names = [item["sample_name"] for item in items]
    return names if bins == 1 else [f"{name}, bin {part}" for name in names for part in range(bins)]


def hash_samples(datalist: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256, in hexadecimal, of the names of a list in their order: equal for equal lists alone.

    Args:
        datalist: items with `sample_id` and `sample_name`, as `with_sample_ids` gives them.

    Raises:
        ValueError: the list does not come from `with_sample_ids`.

    Example:
        >>> one, two = ([{"image": f"{name}.nii"} for name in order] for order in ("ab", "ba"))
        >>> hash_samples(with_sample_ids(one)) == hash_samples(with_sample_ids(two))
        False
    """
    # The length of each name keeps ["a", "b"] and ["ab"] apart.
    text = "".join(f"{len(name)}:{name}" for name in sample_names(datalist))
    return hashlib.sha256(text.encode()).hexdigest()


def _name_of(item: Mapping[str, Any], position: int) -> str:
    for key in ("sample_name", "sample_id"):
        if isinstance(item.get(key), str):
            return item[key]
    image = item.get("image")
    image = image[0] if isinstance(image, list | tuple) and image else image
    if isinstance(image, str | PurePath):
        return PurePath(image).name
    raise ValueError(
        f"datalist: item {position} has no name: give it a sample_name, a text as sample_id, or the path of its image"
    )
