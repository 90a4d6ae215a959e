"""The machine a guess is made of where no driver says which it is: a laptop with a small model."""

from __future__ import annotations

from headway.latency.roofline import Roofline

LAPTOP = Roofline(
    num_params=1.35e8,
    weight_bytes=5.4e8,
    kv_bytes_per_token=46_080.0,
    attention_flops_per_pair=69_120.0,
    flops_per_s=3.0e11,
    bytes_per_s=2.0e10,
    fixed_s=0.005,
)
"""A 0.1B model on two CPU cores. The first steps correct the scale, and no promise is given up or
refused by a guess."""
