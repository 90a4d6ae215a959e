"""A roofline of the served model, from its configuration, to start the latency model with."""

from __future__ import annotations

import os
from typing import Any

from headway.latency.laptop import LAPTOP
from headway.latency.roofline import Roofline

CPU_FLOPS_PER_CORE = 5.0e10
CPU_BYTES_PER_S = 1.5e10
GPU_FLOPS = 4.0e14
GPU_BYTES_PER_S = 2.0e12
"""Orders of magnitude only: the first steps correct the scale (``latency/online.py``)."""


def roofline(vllm_config: Any) -> Roofline:
    """Return the guess for the model and device of *vllm_config*; defaults when unknown."""
    text = getattr(vllm_config.model_config, "hf_text_config", None)
    hidden = getattr(text, "hidden_size", None)
    layers = getattr(text, "num_hidden_layers", None)
    if not hidden or not layers:
        return LAPTOP
    heads = getattr(text, "num_attention_heads", None) or 1
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_width = getattr(text, "head_dim", None) or hidden // heads
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    vocabulary = getattr(text, "vocab_size", None) or 0
    attention = 2 * hidden * head_width * (heads + kv_heads)
    num_params = layers * (attention + 3 * hidden * inner) + hidden * vocabulary
    size = getattr(getattr(vllm_config.model_config, "dtype", None), "itemsize", 2)
    ranks = vllm_config.parallel_config.tensor_parallel_size
    on_cpu = getattr(vllm_config.device_config, "device_type", "cuda") == "cpu"
    flops = CPU_FLOPS_PER_CORE * (os.cpu_count() or 1) if on_cpu else GPU_FLOPS * ranks
    bandwidth = CPU_BYTES_PER_S if on_cpu else GPU_BYTES_PER_S * ranks
    return Roofline(
        num_params=float(num_params),
        weight_bytes=float(num_params * size),
        kv_bytes_per_token=float(2 * layers * kv_heads * head_width * size),
        attention_flops_per_pair=float(4 * layers * heads * head_width),
        flops_per_s=flops,
        bytes_per_s=bandwidth,
        fixed_s=LAPTOP.fixed_s,
    )
