"""A number kept for every training sample: check sample ids, add to entries, keep ranks alike, find entries by name.

Entries are added with `index_add_`, so that a sample that stands several times in a batch counts as often. Under
`torch.distributed` every rank gathers the additions of all ranks first, padded with id -1 where batches differ in
length, and then does the same sums: two small tensors a step, and one table everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import distributed
from torch.nn import functional
from torch.nn.modules.loss import _Loss

NO_SAMPLE = -1


class SampleTableLoss(_Loss):
    """A loss with a table of float32 numbers, one for each training sample, 0 at the start.

    The table is a persistent buffer: saved, moved with the loss, and no parameter. Keep the loss outside of
    `DistributedDataParallel`, which would copy the table of the first rank over the others.

    Args:
        num_samples: number of training samples.
        table: name of the buffer.
        sample_names: names in the order of the ids; see `load_state_dict`.
    """

    visits: torch.Tensor
    nonfinite_updates: torch.Tensor
    sample_keys: torch.Tensor | None

    def __init__(self, num_samples: int, table: str, sample_names: Sequence[str] | None = None) -> None:
        super().__init__()
        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"num_samples must be the number of training samples, at least 1, got {num_samples!r}")
        self.num_samples = num_samples
        self._table = table
        self.register_buffer(table, torch.zeros(num_samples))
        self.register_buffer("visits", torch.zeros(num_samples, dtype=torch.int32))
        # A diagnosis of the running process, of no use to a resumed one.
        self.register_buffer("nonfinite_updates", torch.zeros((), dtype=torch.int64), persistent=False)
        self.sample_names = None if sample_names is None else list(sample_names)
        keys = None if sample_names is None else _make_keys(sample_names, num_samples)
        self.register_buffer("sample_keys", keys)

    def check_ids(self, sample_ids: torch.Tensor, batch: int) -> torch.Tensor:
        """Give the ids of a batch as int64 beside the table.

        Raises:
            ValueError: they are no whole numbers, or not one for each sample of the batch.
            IndexError: an id has no entry.
        """
        ids = sample_ids
        if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            got = f"{ids.dtype}" if isinstance(ids, torch.Tensor) else type(ids).__name__
            raise ValueError(
                f"sample_ids must be a tensor of whole numbers, got {got}; see medseg.data.with_sample_ids"
            )
        if tuple(ids.shape) != (batch,):
            raise ValueError(
                f"sample_ids must have shape ({batch},), one for each sample (not for each view), "
                f"got {tuple(ids.shape)}"
            )
        if batch:
            low, high = torch.stack(ids.aminmax()).tolist()
            if low < 0 or high >= self.num_samples:
                raise IndexError(
                    f"sample_ids run from {low} to {high}, but num_samples is {self.num_samples} "
                    f"(ids 0 to {self.num_samples - 1}); give num_samples the length of the whole training list"
                )
        return ids.as_subclass(torch.Tensor).to(self.visits.device, torch.int64)

    @torch.no_grad()
    def add(self, ids: torch.Tensor, amounts: torch.Tensor) -> None:
        """Add amounts of this batch and of the other ranks; id -1 and what is not finite are left out.

        Args:
            ids: (B,) int64.
            amounts: (B,).
        """
        table: torch.Tensor = getattr(self, self._table)
        ids, amounts = _gather_over_ranks(ids, amounts.detach().to(table))
        there, finite = ids != NO_SAMPLE, torch.isfinite(amounts)
        counts, entries = there & finite, ids.clamp(min=0)
        table.index_add_(0, entries, torch.where(counts, amounts, 0))
        self.visits.index_add_(0, entries, counts.to(self.visits.dtype))
        self.nonfinite_updates += (there & ~finite).sum()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a table; where both sides know their samples' names, refuse other lists, or find entries by name.

        Args:
            state_dict: what `state_dict` gave.
            strict: refuse a table of other samples; with False, entries are found by name, and samples that the table
                does not know start anew.
            assign: as in `torch.nn.Module`.

        Returns:
            As `torch.nn.Module`.

        Raises:
            ValueError: the names differ, with `strict=True`; nothing has been changed.
        """
        state = dict(state_dict)
        if not strict and self._differs(state.get("sample_keys")):
            state |= self._find_by_name(state)
        return super().load_state_dict(state, strict, assign)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        saved = state_dict.get(f"{prefix}sample_keys")
        if saved is not None and self._differs(saved):
            raise ValueError(self._describe_difference(saved.tolist()))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _differs(self, saved: torch.Tensor | None) -> bool:
        own = self.sample_keys
        return saved is not None and own is not None and not torch.equal(saved.cpu(), own.cpu())

    def _find_by_name(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Entries of a saved table in the order of the own samples, 0 for those it does not know."""
        own = self.state_dict()
        place = {key: entry for entry, key in enumerate(state["sample_keys"].tolist())}
        pairs = [(new, place[key]) for new, key in enumerate(own["sample_keys"].tolist()) if key in place]
        into, out_of = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
        found = {"sample_keys": own["sample_keys"]}
        for name in (self._table, "visits"):
            found[name] = torch.zeros_like(own[name], device="cpu")
            found[name][into] = state[name].to(found[name])[out_of]
        return found

    def _describe_difference(self, saved: list[int]) -> str:
        names, keys = self.sample_names or [], [] if self.sample_keys is None else self.sample_keys.tolist()
        new = [name for name, key in zip(names, keys, strict=True) if key not in set(saved)]
        gone = len(set(saved) - set(keys))
        what = f"{len(new)} of {len(names)} samples are new{f' (such as {new[0]!r})' if new else ''}, {gone} are gone"
        if not new and not gone:
            what = "the same samples stand in another order"
        return (
            f"sample_names differ from those of the saved table: {what}. Resume with the list of files that the table "
            "was made with, or load with strict=False, which finds entries by name and starts new samples anew"
        )


def _make_keys(names: Sequence[str], num_samples: int) -> torch.Tensor:
    """First 8 bytes of the SHA-256 of every name: a checkpoint then knows its samples without telling their names."""
    if len(names) != num_samples or len(set(names)) != num_samples:
        raise ValueError(
            f"sample_names must hold {num_samples} different names, one for each sample id, got {len(names)} of which "
            f"{len(set(names))} differ; see medseg.data.sample_names"
        )
    digests = (hashlib.sha256(name.encode()).digest() for name in names)
    return torch.tensor([int.from_bytes(digest[:8], "big", signed=True) for digest in digests])


def _gather_over_ranks(ids: torch.Tensor, amounts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and amounts of all ranks in the order of the ranks; those of this process where there is no other."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return ids, amounts
    world = distributed.get_world_size()
    own = torch.tensor([len(ids)], device=ids.device)
    lengths = [torch.zeros_like(own) for _ in range(world)]
    distributed.all_gather(lengths, own)
    longest = int(torch.cat(lengths).max())
    gathered = []
    for values, filler in ((ids, NO_SAMPLE), (amounts, 0)):
        padded = functional.pad(values, (0, longest - len(values)), value=filler)
        parts = [torch.empty_like(padded) for _ in range(world)]
        distributed.all_gather(parts, padded)
        gathered.append(torch.cat(parts))
    return gathered[0], gathered[1]
