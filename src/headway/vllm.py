"""What users hand to vLLM.

``--scheduler-cls headway.vllm.Scheduler`` where async scheduling is on (vLLM's default on
GPUs), ``headway.vllm.SyncScheduler`` where it is off (its CPU platform). ``SwapConnector`` goes
into ``--kv-transfer-config``; ``headway serve --swap-gib N`` writes that.
"""

from headway.engines.vllm.driver import AsyncHeadway as Scheduler
from headway.engines.vllm.driver import SyncHeadway as SyncScheduler
from headway.engines.vllm.swap_connector import SwapConnector

__all__ = ["Scheduler", "SwapConnector", "SyncScheduler"]
