"""What a model's shapes and a GPU's data sheet say: KV room, vLLM's defaults, a roofline cost.

Sizes in bytes and tokens. vLLM's defaults are those of 0.32 (``EngineArgs.get_batch_defaults``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headway.errors import UserError
from headway.latency.fit import rounded
from headway.latency.profile import StepCost

BYTES_PER_VALUE = 2
"""bfloat16, for weights, activations and KV alike."""

GPU_MEMORY_SHARE = 0.9
"""vLLM's long-time default of ``gpu_memory_utilization``; 0.32 raised it to 0.92."""

ENGINE_BYTES = 800_000_000
"""CUDA context, graphs and buffers of a GPU. With it :func:`kv_capacity_tokens` says 41,594 for
Llama-3.1-8B on an RTX 4090 (25,250,627,584 bytes), where vLLM 0.19 reported 41,408."""

BIG_GPU_BYTES, HUGE_GPU_BYTES = 70 * 2**30, 160 * 2**30
"""Where vLLM's defaults change (0.32, ``EngineArgs.get_batch_defaults``)."""

EXPOSED = 0.5
"""Share of the arithmetic below the knee that adds to the step. The tables' own fits say 0.46 to
0.66; against them a roofline of Llama-3.1-8B is off by 4 to 6 % on average, and by 10 to 14 %
with a share of 0."""


@dataclass(frozen=True, slots=True)
class ModelShapes:
    """A dense transformer, as far as its step time and its KV go."""

    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    intermediate: int
    vocab: int
    num_mlp_matrices: int = 3
    ties_embeddings: bool = False

    @property
    def num_matmul_params(self) -> int:
        """Weights every token is multiplied with; the output layer sees one token a prompt."""
        attention = 2 * self.hidden * self.head_width * (self.num_heads + self.num_kv_heads)
        mlp = self.num_mlp_matrices * self.hidden * self.intermediate
        return self.num_layers * (attention + mlp)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights (norms and biases are below 0.1 % and left out)."""
        tables = 1 if self.ties_embeddings else 2
        return BYTES_PER_VALUE * (self.num_matmul_params + tables * self.hidden * self.vocab)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token over all layers."""
        return 2 * BYTES_PER_VALUE * self.num_layers * self.num_kv_heads * self.head_width

    @classmethod
    def from_config(cls, config: Mapping[str, Any], model: str) -> ModelShapes:
        """Read a Hugging Face ``config.json``.

        Raises:
            UserError: Not a dense transformer with plain or grouped-query attention.
        """
        is_opt = "ffn_dim" in config  # Two MLP matrices, tied tables, as many KV heads as heads.
        sparse = ("num_experts", "num_local_experts", "n_routed_experts", "kv_lora_rank")
        try:
            if any(config.get(key) for key in sparse):
                raise KeyError("dense")
            heads = int(config["num_attention_heads"])
            hidden = int(config["hidden_size"])
            return cls(
                num_layers=int(config["num_hidden_layers"]),
                hidden=hidden,
                num_heads=heads,
                num_kv_heads=int(config.get("num_key_value_heads") or heads),
                head_width=int(config.get("head_dim") or hidden // heads),
                intermediate=int(config["ffn_dim" if is_opt else "intermediate_size"]),
                vocab=int(config["vocab_size"]),
                num_mlp_matrices=2 if is_opt else 3,
                ties_embeddings=bool(config.get("tie_word_embeddings", is_opt)),
            )
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"The shapes of {model} cannot be read from its config: only dense transformers"
                " with plain or grouped-query attention are understood; --from-aiconfigurator takes"
                " others when --kv-tokens and --kv-bytes-per-token are given."
            ) from None


def batch_defaults(memory_bytes: int, gpu: str) -> tuple[int, int]:
    """Return vLLM's default ``max_num_batched_tokens`` and ``max_num_seqs`` (API server)."""
    if memory_bytes >= HUGE_GPU_BYTES:
        return 16_384, 1024
    if memory_bytes >= BIG_GPU_BYTES and "a100" not in gpu.lower():
        return 8192, 1024
    return 2048, 256


def kv_capacity_tokens(shapes: ModelShapes, memory_bytes: int, gpu: str, num_gpus: int) -> int:
    """Return the KV tokens that vLLM would find room for by default; 0 if the model won't fit.

    Memory times its share, less the weights, the engine's own, the widest activations of a
    full step (the MLP's, and twice the residual) and the logits of a full batch in 32 bits
    with one copy for sampling.
    """
    batched, seqs = batch_defaults(memory_bytes, gpu)
    width = 2 * shapes.intermediate // num_gpus + 2 * shapes.hidden
    activations = BYTES_PER_VALUE * batched * width
    logits = 2 * 4 * seqs * shapes.vocab
    taken = shapes.weight_bytes / num_gpus + ENGINE_BYTES + activations + logits
    left = GPU_MEMORY_SHARE * memory_bytes - taken
    return max(int(left * num_gpus / shapes.kv_bytes_per_token), 0)


def roofline(
    shapes: ModelShapes, flops_per_s: float, bytes_per_s: float, num_gpus: int = 1
) -> StepCost:
    """Return the step cost of the longer of arithmetic and weight traffic.

    Williams et al., "Roofline" (CACM 2009): up to the knee the weights are read, beyond it the
    arithmetic is the longer. Differs: :data:`EXPOSED` of the arithmetic below the knee shows,
    for kernels never overlap all of it. KV traffic and the arithmetic of attention come on top.

    Args:
        flops_per_s, bytes_per_s: What one GPU sustains, not its peak.
    """
    read = shapes.weight_bytes
    if not shapes.ties_embeddings:
        read -= BYTES_PER_VALUE * shapes.hidden * shapes.vocab  # Input rows are looked up.
    read_s = read / bytes_per_s / num_gpus
    per_token_s = 2.0 * shapes.num_matmul_params / flops_per_s / num_gpus
    pair_flops = 4.0 * shapes.num_layers * shapes.num_heads * shapes.head_width
    return StepCost(
        max(round(read_s / per_token_s), 1),
        *rounded(
            read_s,
            EXPOSED * per_token_s,
            per_token_s,
            shapes.kv_bytes_per_token / bytes_per_s / num_gpus,
            0.0,  # a decode
            pair_flops / flops_per_s / num_gpus,
            0.0,  # a prompt
        ),
    )
