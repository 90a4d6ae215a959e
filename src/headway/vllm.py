"""What users hand to vLLM.

``--scheduler-cls headway.vllm.Scheduler`` where async scheduling is on (vLLM's default on
GPUs), ``headway.vllm.SyncScheduler`` where it is off (its CPU platform).
"""

from headway.engines.vllm.scheduler import AsyncHeadway as Scheduler
from headway.engines.vllm.scheduler import SyncHeadway as SyncScheduler

__all__ = ["Scheduler", "SyncScheduler"]
