"""What a server tells of its engine is what the engine has."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from headway.bench.verify_rows import Findings, rows_of
from headway.engines.vllm.features import features_of


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_features_of_an_engine(lab: Any, asynchronous: bool) -> None:
    """By name, with the sizes that make a cache tiny; the row of ``verify`` can be made of them."""
    engine = lab.Engine(
        num_blocks=80, max_num_batched_tokens=128, max_num_seqs=8, asynchronous=asynchronous,
        headway={"policy": "headway"},
    )  # fmt: skip
    told = json.loads(json.dumps(features_of(lab.start(engine).scheduler)))
    assert (told["is_tried"], told["mistake"], told["unknown"]) == (True, None, None)
    assert told["scheduler"] == ("AsyncHeadway" if asynchronous else "SyncHeadway")
    assert told["on"]["asynchronous scheduling"] == asynchronous
    assert told["on"]["attention groups"] == "FullAttentionSpec"
    assert (told["on"]["swap"], told["on"]["KV connector"]) == (False, False)
    sizes = told["sizes"]
    assert (sizes["kv_blocks"], sizes["max_running"], sizes["max_step_tokens"]) == (79, 8, 128)
    assert (sizes["block_tokens"], sizes["kv_groups"]) == (engine.block_size, 1)
    assert sizes["block_bytes"] > 0
    assert rows_of(Findings(features=told))[0].verdict == "ok"
