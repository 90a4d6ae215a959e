"""``SwapConnector``: vLLM keeps the KV of preempted requests in host memory.

vLLM V1 only recomputes. Its KV connector interface lets us copy a victim's whole blocks out before
they are overwritten and back into its new blocks when it resumes, on every platform. The scheduler
decides who is swapped (``Preempt(how="swap")``); the stock loop learns of the copy as if it were
a hit in an external cache, loaded within the step. ``docs/swap.md`` tells the whole story.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorBase_V1, KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig

from headway.engines.vllm import compat
from headway.engines.vllm.swap_scheduler import Copy, HostSlots
from headway.engines.vllm.swap_worker import HostCopies
from headway.engines.vllm.vllm_names import CONNECTOR as CONNECTOR_NAMES
from headway.engines.vllm.vllm_names import missing_of, refuse_missing
from headway.errors import UserError
from headway.units import GIB

CONNECTOR, MODULE = "SwapConnector", "headway.vllm"
"""Where vLLM finds the connector; the class has to have this name there."""

GUESSED_BYTES_PER_S = 10.0 * GIB
"""Bandwidth of the link to the host until a copy was timed: a PCIe 3 link's, roughly."""

RECENT = 0.3
"""Weight of the newest timed copies in the measured bandwidth."""


def transfer_config(host_bytes: int) -> dict[str, Any]:
    """Return the ``--kv-transfer-config`` that gives every worker *host_bytes* to swap to.

    The role is ``kv_producer`` on purpose. For a consumer vLLM holds freed blocks back for a step
    under async scheduling, because loads may be ordered against nothing; ours are ordered with
    the model's own work, and with blocks held back no running request could be preempted.
    """
    return {
        "kv_connector": CONNECTOR,
        "kv_connector_module_path": MODULE,
        "kv_role": "kv_producer",
        "kv_connector_extra_config": {"host_bytes": host_bytes},
    }


@dataclass(frozen=True, slots=True)
class SwapMetadata(KVConnectorMetadata):
    """What the workers copy in a step: first ``out``, to the host, then ``back``."""

    out: tuple[Copy, ...] = ()
    back: tuple[Copy, ...] = ()


@dataclass(frozen=True, slots=True)
class CopyTimes(KVConnectorWorkerMetadata):
    """Blocks a worker copied, either way, and the seconds that took."""

    num_blocks: int
    seconds: float

    def aggregate(self, other: KVConnectorWorkerMetadata) -> CopyTimes:
        """Return the slower of two ranks; they copy their shards of the same blocks at once."""
        assert isinstance(other, CopyTimes)
        return max(self, other, key=lambda times: times.seconds / times.num_blocks)


class SwapConnector(KVConnectorBase_V1):
    """Swap for Headway's schedulers; with stock vLLM as scheduler it does nothing.

    One object in the scheduler (``slots``), one in every worker (which copies).

    Raises:
        UserError: The model or the parallelism cannot be swapped, or ``host_bytes`` is missing.
    """

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        refuse_missing(missing_of(CONNECTOR_NAMES))
        refuse_parallelism(vllm_config.parallel_config)
        host_bytes = self._kv_transfer_config.get_from_extra_config("host_bytes", None)
        if not isinstance(host_bytes, int) or host_bytes <= 0:
            raise UserError(
                'SwapConnector needs "host_bytes" above 0 in kv_connector_extra_config; '
                "headway serve --swap-gib N puts it there."
            )
        self.block_bytes = block_bytes(kv_cache_config)
        """Bytes of KV of one block, on one worker."""
        self.bytes_per_s = GUESSED_BYTES_PER_S
        """Bandwidth of one worker's link to the host, as measured lately."""
        self.slots = HostSlots(host_bytes // self.block_bytes, vllm_config.cache_config.block_size)
        self._is_measured = False
        self._num_blocks = kv_cache_config.num_blocks
        self._copies: HostCopies | None = None

    # -- in the scheduler -------------------------------------------------------------------

    @property
    def requires_kv_delivery(self) -> bool:
        """A copy that is lost is recomputed: nothing waits for it."""
        return False

    def view(self) -> dict[str, Any]:
        """Return what :class:`~headway.policy.view.EngineView` tells of the host and its link.

        Nothing is ever queued when a plan is made: a step's copies end before its output comes.
        """
        return {
            "swap_free_blocks": self.slots.num_free,
            "copy_bytes_per_s": self.bytes_per_s,
            "kv_bytes_per_token": self.block_bytes // self.slots.block_size_tokens,
        }

    def try_keep(self, request: Any) -> bool:
        """Plan the copy of a victim's KV, before its blocks are freed.

        Returns:
            Whether host memory has room; if not, the request will be recomputed.
        """
        block_ids = compat.block_ids(self._kv_cache_manager, request)
        num_tokens = compat.num_settled_tokens(request)
        return self.slots.try_store(request.request_id, block_ids, num_tokens)

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int, bool]:
        """Return the swapped tokens beyond what the prefix cache has; loaded within the step."""
        return max(self.slots.tokens(request.request_id) - num_computed_tokens, 0), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """A request resumes: its copy goes back, or is of no use any more."""
        request_id = request.request_id
        if num_external_tokens:
            num_cached_tokens = self.slots.tokens(request_id) - num_external_tokens
            self.slots.load(request_id, blocks.get_block_ids()[0], num_cached_tokens)
        else:
            self.slots.drop(request_id)

    def build_connector_meta(self, scheduler_output: Any) -> SwapMetadata:
        """Return the copies of this step for the workers."""
        return SwapMetadata(*self.slots.take_copies())

    def update_connector_output(self, connector_output: Any) -> None:
        """Learn the link's bandwidth from what the workers timed."""
        times = connector_output.kv_connector_worker_meta
        if isinstance(times, CopyTimes) and times.seconds > 0:
            measured = times.num_blocks * self.block_bytes / times.seconds
            weight = RECENT if self._is_measured else 1.0
            self.bytes_per_s += weight * (measured - self.bytes_per_s)
            self._is_measured = True

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        """A request ends: its copy is dropped, its blocks are free at once."""
        self.slots.drop(request.request_id)
        return False, None

    def reset_cache(self) -> bool:
        """Forget all copies; their requests recompute."""
        self.slots.clear()
        return True

    # -- in a worker ------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Allocate the host memory beside the KV cache."""
        self._copies = HostCopies(kv_caches, self._num_blocks, self.slots.num_slots)

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Copy victims out; called before the step writes a single block."""
        assert isinstance(kv_connector_metadata, SwapMetadata)
        if self._copies is not None:
            self._copies.out(kv_connector_metadata.out)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Copy the returned back; called before the step reads their blocks."""
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, SwapMetadata)
        if self._copies is not None:
            self._copies.back(metadata.back)

    def build_connector_worker_meta(self) -> CopyTimes | None:
        """Report the copies that are done."""
        times = CopyTimes(*self._copies.take_times()) if self._copies is not None else None
        return times if times is not None and times.num_blocks else None

    def wait_for_layer_load(self, layer_name: str) -> None:
        """All layers are loaded, or queued before the model, when the step begins."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Copies leave only when a request is preempted."""

    def wait_for_save(self) -> None:
        """Copies are ordered with the model's own work: nobody waits."""


def swap_connector(scheduler: Any) -> SwapConnector | None:
    """Return our connector, the scheduler's only one or one of vLLM's ``MultiConnector``."""
    connector = scheduler.connector
    for one in (connector, *getattr(connector, "sub_connectors", ())):
        if isinstance(one, SwapConnector):
            return one
    return None


def block_bytes(kv_cache_config: KVCacheConfig) -> int:
    """Return the bytes of KV of one block over a worker's layers.

    Raises:
        UserError: The model keeps more than one kind of state.
    """
    groups = kv_cache_config.kv_cache_groups
    spec = groups[0].kv_cache_spec if len(groups) == 1 else None
    if not isinstance(spec, FullAttentionSpec):
        raise UserError(
            "--swap-gib serves models whose layers all keep full attention of one size; "
            "serve this one without it."
        )
    return int(spec.page_size_bytes) * len(groups[0].layer_names)


def refuse_parallelism(parallel_config: Any) -> None:
    """Raise :class:`~headway.errors.UserError` where ranks do not hold shards of equal size."""
    for name in (
        "pipeline_parallel_size",
        "decode_context_parallel_size",
        "prefill_context_parallel_size",
    ):
        if getattr(parallel_config, name) != 1:
            raise UserError(
                f"--swap-gib works with tensor and data parallelism, not with {name} above 1."
            )
