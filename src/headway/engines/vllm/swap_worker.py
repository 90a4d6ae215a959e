"""A worker's side of swap: host memory for its shard of the KV cache, and the copies.

Every copy is issued on the stream the model runs on, in the order of the steps. So a victim's
blocks are read before anything overwrites them, a returned request's blocks are full before its
step reads them, and no event or lock is needed for either.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch

from headway.engines.vllm.swap_scheduler import Copy
from headway.errors import UserError
from headway.units import GIB


class HostCopies:
    """Rows of host memory beside the KV cache of every layer.

    Args:
        kv_caches: KV cache of each layer, as the model runner allocated it. Layers that share
            one are copied once.
        num_blocks: Blocks of the KV cache.
        num_slots: Rows to allocate.

    Raises:
        UserError: A cache has a shape we do not understand, or host memory is short.
    """

    def __init__(
        self, kv_caches: Mapping[str, torch.Tensor], num_blocks: int, num_slots: int
    ) -> None:
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        seen: set[int] = set()
        for name, cache in kv_caches.items():
            blocks = by_block(name, cache, num_blocks)
            if blocks.data_ptr() in seen:
                continue
            seen.add(blocks.data_ptr())
            self._layers.append((blocks, host_rows(blocks, num_slots)))
        self._timer = CopyTimer(self._layers[0][0].device)

    def out(self, copies: Sequence[Copy]) -> None:
        """Copy victims' blocks to their slots; the next step may overwrite them."""
        block_ids, slots = pairs(copies)
        if not slots:
            return
        with self._timer.timing(len(slots)):
            for blocks, rows in self._layers:
                staged = blocks.index_select(0, on(blocks, block_ids))
                for first, last, row in runs(slots):
                    rows[row : row + last - first].copy_(staged[first:last], non_blocking=True)

    def back(self, copies: Sequence[Copy]) -> None:
        """Copy slots back into the blocks their requests have now."""
        block_ids, slots = pairs(copies)
        if not slots:
            return
        with self._timer.timing(len(slots)):
            for blocks, rows in self._layers:
                shape = (len(slots), *blocks.shape[1:])
                staged = torch.empty(shape, dtype=blocks.dtype, device=blocks.device)
                for first, last, row in runs(slots):
                    staged[first:last].copy_(rows[row : row + last - first], non_blocking=True)
                blocks.index_copy_(0, on(blocks, block_ids), staged)

    def take_times(self) -> tuple[int, float]:
        """Return blocks copied and the seconds that took, for copies known to be done."""
        return self._timer.take()


def by_block(name: str, cache: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """Return a view of a layer's KV cache whose first dimension is the scheduler's blocks.

    Attention backends put the blocks first, or second behind keys and values; some cut each
    block into several of their own.

    Raises:
        UserError: Neither dimension is a multiple of *num_blocks*.
    """
    if not isinstance(cache, torch.Tensor):
        raise UserError(f"--swap-gib cannot swap the state of {name}: it is no attention cache.")
    dim = 1 if cache.dim() > 2 and cache.shape[0] == 2 != num_blocks else 0
    if cache.shape[dim] == 0 or cache.shape[dim] % num_blocks:
        raise UserError(
            f"--swap-gib does not know the KV layout of {name}, {tuple(cache.shape)} "
            f"for {num_blocks} blocks; serve without it."
        )
    return cache.unflatten(dim, (num_blocks, -1)).movedim(dim, 0)


def host_rows(blocks: torch.Tensor, num_slots: int) -> torch.Tensor:
    """Return *num_slots* rows of host memory, pinned where the cache is on a device."""
    pinned = blocks.device.type != "cpu"
    try:
        return torch.empty(
            (num_slots, *blocks.shape[1:]), dtype=blocks.dtype, device="cpu", pin_memory=pinned
        )
    except RuntimeError as error:
        size_gib = num_slots * blocks[0].numel() * blocks.element_size() / GIB
        raise UserError(
            f"--swap-gib asks for more host memory than there is: {size_gib:.2f} GiB for one "
            f"layer were refused ({str(error).splitlines()[0]:.100})."
        ) from None


def pairs(copies: Sequence[Copy]) -> tuple[list[int], list[int]]:
    """Return the blocks and the slots of all *copies*, in order."""
    block_ids = [block for copy in copies for block in copy.block_ids]
    slots = [slot for copy in copies for slot in copy.slots]
    return block_ids, slots


def runs(slots: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield stretches of consecutive *slots*: first index, one past the last, first slot."""
    for _, stretch in groupby(enumerate(slots), key=lambda item: item[1] - item[0]):
        items = list(stretch)
        yield items[0][0], items[-1][0] + 1, items[0][1]


def on(blocks: torch.Tensor, block_ids: Sequence[int]) -> torch.Tensor:
    """Return *block_ids* as an index on the device of *blocks*."""
    return torch.tensor(block_ids, dtype=torch.long, device=blocks.device)


class CopyTimer:
    """How long copies took, without waiting for one.

    On a device the copies are only queued when the calls return, so events in the stream take the
    time; a copy counts once its second event has passed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._num_blocks = 0
        self._seconds = 0.0
        self._queued: deque[tuple[int, torch.Event, torch.Event]] = deque()

    @contextmanager
    def timing(self, num_blocks: int) -> Iterator[None]:
        """Time the copies issued inside."""
        if self._device.type == "cpu":
            began_s = time.perf_counter()
            yield
            self._num_blocks += num_blocks
            self._seconds += time.perf_counter() - began_s
            return
        begin, end = (torch.Event(self._device, enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._queued.append((num_blocks, begin, end))

    def take(self) -> tuple[int, float]:
        """Return blocks and seconds of the copies done since the last call."""
        while self._queued and self._queued[0][2].query():
            num_blocks, begin, end = self._queued.popleft()
            self._num_blocks += num_blocks
            self._seconds += begin.elapsed_time(end) / 1000
        taken = self._num_blocks, self._seconds
        self._num_blocks, self._seconds = 0, 0.0
        return taken
