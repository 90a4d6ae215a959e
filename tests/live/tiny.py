"""Tiny models with random weights, adapters for them and a tokenizer: made in a second, as files.

The weights are wide (a standard deviation of 0.3), so that a token's logit lies far enough above
the next one's that the order of a sum cannot turn them: greedy outputs can be compared exactly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCABULARY = 258
"""Bytes, then the beginning and the end of a text."""

BEGIN, END = 256, 257
LETTERS = 94
"""The first tokens are what can be printed of ASCII: a prompt of any of them is a text."""

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "pad_token_id": END,
}

WINDOW = 64
"""Tokens that a sliding layer of :func:`gemma3` sees."""


def llama(folder: Path) -> None:
    """Write two layers of full attention."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        **SIZES, num_hidden_layers=2, tie_word_embeddings=False, architectures=["LlamaForCausalLM"]
    )
    _save(config, folder)


def gemma3(folder: Path) -> None:
    """Write two layers with a sliding window and one of full attention."""
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(
        **SIZES,
        num_hidden_layers=3,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        sliding_window=WINDOW,
        query_pre_attn_scalar=32,
        tie_word_embeddings=False,
        architectures=["Gemma3ForCausalLM"],
    )
    _save(config, folder, loud=("post_attention_layernorm", "post_feedforward_layernorm"))


def falcon_h1(folder: Path) -> None:
    """Write two layers that have attention and a recurrent state (Mamba 2) each."""
    from transformers import FalconH1Config

    config = FalconH1Config(
        **SIZES,
        num_hidden_layers=2,
        mamba_d_ssm=128,
        mamba_n_heads=4,
        mamba_d_head=32,
        mamba_n_groups=1,
        mamba_d_state=32,
        mamba_expand=2,
        mamba_chunk_size=64,
        architectures=["FalconH1ForCausalLM"],
    )
    _save(config, folder)


def mamba2(folder: Path) -> None:
    """Write two layers of recurrent state, no attention."""
    from transformers import Mamba2Config

    config = Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        state_size=32,
        num_hidden_layers=2,
        num_heads=4,
        head_dim=32,
        n_groups=1,
        expand=2,
        chunk_size=64,
        initializer_range=0.3,
        architectures=["Mamba2ForCausalLM"],
    )
    _save(config, folder)


def bert(folder: Path) -> None:
    """Write an encoder: no KV cache at all."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
        architectures=["BertModel"],
    )
    BertModel(config).save_pretrained(folder)
    _save_tokenizer(folder)


def _save(config: Any, folder: Path, loud: tuple[str, ...] = ()) -> None:
    """Write a model; the norms in *loud* let the layers be heard above a scaled embedding."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, weight in model.named_parameters():
        if any(part in name for part in loud):
            torch.nn.init.constant_(weight, 10.0)
    model.save_pretrained(folder)
    _save_tokenizer(folder)


def _save_tokenizer(folder: Path) -> None:
    """Write a tokenizer whose tokens are bytes; only grammars need one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    vocabulary |= {"<s>": BEGIN, "</s>": END}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(folder)


def adapter(folder: Path, number: int) -> None:
    """Write a LoRA adapter of rank 8 for :func:`llama`, strong enough to change every answer."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(number)
    weights = {}
    for layer in range(2):
        for name, width in (("q_proj", 128), ("v_proj", 64)):
            path = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{path}.lora_A.weight"] = torch.randn(8, 64, generator=generator) * 0.3
            weights[f"{path}.lora_B.weight"] = torch.randn(width, 8, generator=generator) * 0.3
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
