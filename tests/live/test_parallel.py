"""More than one worker, on the CPU engine: vLLM's own data and tensor parallelism carry Headway.

Two data parallel engines behind one API server, each with a scheduler of its own: promises are
answered by both, the page and ``/metrics`` speak for both, and greedy tokens are those of one
engine. Two tensor parallel workers on a tiny random model: the same, with victims swapped, each
rank copying its own shard.

``VLLM_CPU_OMP_THREADS_BIND`` gives each worker a core: without it start-up fails where there is one
NUMA node. The engines that run without a server are in ``ranks.py``.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from headway.bench.server import LiveServer

pytestmark = [pytest.mark.live, pytest.mark.parallel]

SCRIPT = Path(__file__).with_name("ranks.py")
TWO_CORES = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
READY_WITHIN_S = 900.0
NUM_PROMPTS, NUM_TOKENS, BLOCK = 24, 48, 32
ROOMY, TIGHT = 400, 40
"""KV blocks: all prompts at once; about a third of them."""

PROMISES = ({"class": "calm"}, {"ttft_ms": 100_000, "tbt_ms": 20_000}, None)

RunEngine = Callable[[Path, str], dict[str, Any]]


def prompts() -> list[list[int]]:
    """Return token ids that both models know, 40 to 160 a prompt."""
    rng = Random(3)
    return [
        [rng.randrange(100, 40_000) for _ in range(rng.randrange(40, 160))]
        for _ in range(NUM_PROMPTS)
    ]


async def ask_all(server: LiveServer, model: str) -> list[list[int]]:
    """Send every prompt at once, most with promises; return the tokens of the answers."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=600)

    async def ask(session: aiohttp.ClientSession, number: int, prompt: list[int]) -> list[int]:
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": NUM_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "slo": PROMISES[number % len(PROMISES)],
        }
        async with session.post(f"{server.url}/v1/completions", json=body) as answer:
            text = await answer.text()
            assert answer.status == 200, text
        tokens: list[int] = json.loads(text)["choices"][0]["token_ids"]
        return tokens

    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        return list(await asyncio.gather(*(ask(session, n, p) for n, p in enumerate(prompts()))))


async def get(server: LiveServer, path: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(server.url + path) as answer:
        assert answer.status == 200
        return await answer.text()


async def told(server: LiveServer, num_promised: int) -> tuple[dict[str, Any], str]:
    """Return state and metrics once they count *num_promised* promises."""
    for _ in range(120):
        state = json.loads(await get(server, "/headway/state"))
        if sum(row["promised"] for row in state["classes"]) == num_promised:
            break
        await asyncio.sleep(0.25)
    return state, await get(server, "/metrics")


def by_engine(metrics: str, name: str) -> dict[str, float]:
    """Return a counter of ours, summed over its other labels, by engine."""
    sums: dict[str, float] = {}
    for labels, value in re.findall(rf"^{name}\{{(.*)\}} (\S+)$", metrics, re.MULTILINE):
        engine = re.search(r'engine="(\d+)"', labels)
        assert engine is not None, labels
        sums[engine[1]] = sums.get(engine[1], 0.0) + float(value)
    return sums


@pytest.fixture(scope="module")
def slo_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("parallel") / "slo.toml"
    path.write_text("[classes.calm]\nttft_s = 200\n")
    return path


NUM_PROMISED = sum(PROMISES[n % len(PROMISES)] is not None for n in range(NUM_PROMPTS))


# -- two engines ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_one_engine(slo_file: Path) -> list[list[int]]:
    """What one engine of the small model answers; nothing of Headway is in it."""
    args = ["smollm2", "--policy", "stock"]
    log = slo_file.with_name("one.log")
    with LiveServer(args, log, ready_within_s=READY_WITHIN_S) as server:
        return asyncio.run(ask_all(server, "smollm2"))


@pytest.fixture(scope="module")
def two_engines(slo_file: Path, of_one_engine: list[list[int]]) -> Iterator[LiveServer]:
    """Two engines; they start when the one they are compared with is gone."""
    args = ["smollm2", "--page", "--slo", str(slo_file), "--data-parallel-size", "2"]
    log = slo_file.with_name("two.log")
    with LiveServer(args, log, ready_within_s=READY_WITHIN_S, env=TWO_CORES) as server:
        yield server


async def test_two_engines_answer_as_one_does(
    two_engines: LiveServer, of_one_engine: list[list[int]]
) -> None:
    """Promised or not, every greedy token is the same; and both engines had their part."""
    assert await ask_all(two_engines, "smollm2") == of_one_engine
    state, metrics = await told(two_engines, NUM_PROMISED)
    assert state["num_engines"] == 2
    assert sum(row["promised"] for row in state["classes"]) == NUM_PROMISED
    promised = by_engine(metrics, "headway_requests_promised_total")
    assert set(promised) == {"0", "1"}
    assert sum(promised.values()) == NUM_PROMISED
    assert min(promised.values()) > 0
    tokens = by_engine(metrics, "vllm:generation_tokens_total")
    assert sum(tokens.values()) == NUM_PROMPTS * NUM_TOKENS
    assert min(tokens.values()) > 0


async def test_either_engine_knows_a_mistake(two_engines: LiveServer) -> None:
    """Whichever engine a request is for: 400 and a sentence, and nothing is left behind."""
    async with aiohttp.ClientSession() as session:
        for number in range(4):
            body = {"model": "smollm2", "prompt": "Hi", "max_tokens": 2, "slo": {"ttft_ms": -1}}
            async with session.post(f"{two_engines.url}/v1/completions", json=body) as answer:
                assert answer.status == 400, number
                assert "slo.ttft_ms" in await answer.text()
    now = json.loads(await get(two_engines, "/headway/state"))["now"]
    assert (now["running"], now["waiting"]) == (0, 0)


# -- two workers of one engine --------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose heads two ranks can share, with the small model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from headway.engines.vllm import embedded

    source, folder = embedded.ensure(), Path(tmp_path_factory.mktemp("tiny"))
    torch.manual_seed(7)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=json.loads((source / "config.json").read_text())["vocab_size"],
        max_position_embeddings=1024,
        initializer_range=0.2,  # Logits far apart: no tie that another order of sums could turn.
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in source.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder)
    return folder


def settings(tiny: Path, **more: Any) -> str:
    sizes = {"num_tokens": NUM_TOKENS, "block_size": BLOCK}
    return json.dumps({"model": str(tiny), "prompts": prompts(), **sizes, **more})


@pytest.fixture(scope="module")
def of_one_worker(tiny: Path, run_engine: RunEngine) -> list[list[int]]:
    """Stock vLLM, one worker, room for everybody."""
    found = run_engine(SCRIPT, settings(tiny, ranks=1, num_blocks=ROOMY))
    tokens: list[list[int]] = found["tokens"]
    return tokens


@pytest.mark.parametrize("swap", [False, True], ids=["recompute", "swap"])
def test_two_workers_answer_as_one_does_under_pressure(
    tiny: Path, run_engine: RunEngine, of_one_worker: list[list[int]], swap: bool
) -> None:
    """A third of the cache they need: preempted or copied out and back, no token differs."""
    found = run_engine(SCRIPT, settings(tiny, ranks=2, num_blocks=TIGHT, swap=swap))
    assert found["tokens"] == of_one_worker
    assert found["preemptions"] >= 4
    assert (found["swapped"] >= 4) if swap else (found["swapped"] == 0)
    assert found["left_behind"] == {"blocks": 0, "slots": 0, "requests": 0}


async def test_a_server_of_two_workers_with_swap(
    tiny: Path, slo_file: Path, of_one_worker: list[list[int]]
) -> None:
    """``headway serve --tensor-parallel-size 2 --swap-gib``: promises answered, tokens the same."""
    args = [
        *(str(tiny), "--served-model-name", "tiny", "--slo", str(slo_file), "--page"),
        *("--tensor-parallel-size", "2", "--swap-gib", "0.01", "--dtype", "float32"),
        *("--enforce-eager", "--block-size", str(BLOCK), "--num-gpu-blocks-override", str(TIGHT)),
        *("--kv-cache-memory-bytes", str(1 << 28), "--max-model-len", "512"),
    ]
    environment = {**TWO_CORES, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = slo_file.with_name("workers.log")
    with LiveServer(args, log, ready_within_s=READY_WITHIN_S, env=environment) as server:
        assert await ask_all(server, "tiny") == of_one_worker
        state, metrics = await told(server, NUM_PROMISED)
        assert sum(row["promised"] for row in state["classes"]) == NUM_PROMISED
        assert state["num_engines"] == 1
        assert by_engine(metrics, "headway_requests_promised_total") == {"0": NUM_PROMISED}
