"""``headway bench``'s figures beside stock vLLM's own, and such a server's end.

One plain vLLM with a tiny random model, whose tokens are bytes: chunks often have tokens and no
text.
"""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import tiny
from click.testing import CliRunner

from headway.bench import session
from headway.bench.probe import ServerInfo, parse_metrics
from headway.bench.server import LiveServer
from headway.cli.bench import bench
from headway.engines.vllm.embedded import QUIET_ENVIRONMENT

pytestmark = pytest.mark.live

NAME = "tiny"
NUM_REQUESTS = 30
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder: Path = tmp_path_factory.mktemp("bench")
    tiny.llama(folder / "model")
    (folder / "chat.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    args = [str(folder / "model"), "--policy", "stock", "--served-model-name", NAME]
    args += ["--chat-template", str(folder / "chat.jinja"), "--shutdown-timeout", "60"]
    args += ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(2**28)]
    environment = {**QUIET_ENVIRONMENT, "NO_PROXY": "127.0.0.1,localhost"}
    with LiveServer(args, folder / "log", ready_within_s=900, env=environment) as running:
        yield running


def counted(server: LiveServer) -> dict[str, float]:
    """Return what vLLM itself has counted so far."""
    with LOCAL.open(f"{server.url}/metrics", timeout=30) as answer:
        found = parse_metrics(answer.read().decode())
    names = {
        "requests": "request_success_total",
        "prompt": "prompt_tokens_total",
        "output": "generation_tokens_total",
        "ttft_s": "time_to_first_token_seconds_sum",
    }
    return {short: found.get(f"vllm:{name}", 0.0) for short, name in names.items()}


@pytest.mark.parametrize("how", ["ids", "usage"])
def test_it_counts_what_vllm_counts(
    server: LiveServer, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests, prompt and output tokens to the last one, whether vLLM sends ids or, asked as any
    other server, only a usage; and no first token is seen sooner than vLLM had it."""
    if how == "usage":

        async def ask_server(*_: Any) -> ServerInfo:
            return ServerInfo(NAME, is_vllm=False)

        monkeypatch.setattr(session, "ask_server", ask_server)
    lengths = [(20 + 7 * i, 1 + 5 * i % 60) for i in range(NUM_REQUESTS)]
    rows = [
        {"arrived_at_s": i / 20, "num_prompt_tokens": before, "num_output_tokens": after}
        for i, (before, after) in enumerate(lengths)
    ]
    trace, out, summary = (tmp_path / name for name in ("w.jsonl", "out.jsonl", "summary.json"))
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    before = counted(server)
    result = CliRunner().invoke(
        bench,
        ["--url", server.url, "--workload", str(trace), "--no-warm-up", "--out", str(out),
         "--json", str(summary)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    grown = {name: value - before[name] for name, value in counted(server).items()}
    records = [json.loads(line) for line in out.read_text().splitlines()]
    (run,) = json.loads(summary.read_text())["runs"]
    assert run["tokens_counted_by"] == {how: NUM_REQUESTS}
    assert grown["requests"] == NUM_REQUESTS
    assert sum(len(record["emitted_at_s"]) for record in records) == grown["output"]
    assert sum(record["num_prompt_tokens"] for record in records) == grown["prompt"]
    if how == "ids":  # Then every answer has its recorded length.
        assert grown["output"] == sum(num_output for _, num_output in lengths)
    ttfts_s = [record["emitted_at_s"][0] - record["arrived_at_s"] for record in records]
    assert sum(ttfts_s) >= grown["ttft_s"] > 0


async def test_a_server_told_to_drain_ends_its_streams_first(server: LiveServer) -> None:
    """SIGTERM with --shutdown-timeout: open streams come to their end, then the process does.

    The last test of this file: it ends the server.
    """
    body = {
        "model": NAME, "messages": [{"role": "user", "content": "hello"}], "stream": True,
        "max_tokens": 500, "ignore_eos": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    process = server._process
    assert process is not None
    timeout = aiohttp.ClientTimeout(total=120)
    async with (
        aiohttp.ClientSession(timeout=timeout) as client,
        client.post(f"{server.url}/v1/chat/completions", json=body) as answer,
    ):
        await answer.content.readline()
        process.send_signal(signal.SIGTERM)
        text = (await answer.read()).decode()
    assert '"completion_tokens":500' in text
    assert text.rstrip().endswith("data: [DONE]")
    assert process.wait(60) == 0
