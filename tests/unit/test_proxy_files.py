"""The configurations for proxies that are shipped: whole, and at one with what the docs say.

``tests/live/test_behind_proxies.py`` starts them, where the proxies are installed.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import headway
from headway.cli.serve import serve

OPS = Path(headway.__file__).parent / "ops"
FILES = ("nginx.conf", "envoy.yaml", "vllm-router.sh")
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "behind-a-router.md"


def text_of(name: str) -> str:
    return (OPS / name).read_text(encoding="utf-8")


def directives() -> list[str]:
    """What nginx reads, without comments and blocks."""
    plain = re.sub(r"#.*", "", text_of("nginx.conf"))
    assert plain.count("{") - plain.count("${") == plain.count("}") - plain.count("${")
    return [" ".join(d.split()) for d in re.split(r"[;{]\s|\}\s", plain) if d.strip()]


def find(value: Any, key: str) -> list[Any]:
    """Return what *key* is anywhere in a document."""
    if isinstance(value, list):
        return [found for entry in value for found in find(entry, key)]
    if isinstance(value, dict):
        own = [value[key]] if key in value else []
        return own + [found for entry in value.values() for found in find(entry, key)]
    return []


def envoy(key: str) -> Any:
    """Return the one value of a key in Envoy's configuration."""
    (found,) = find(yaml.safe_load(text_of("envoy.yaml")), key)
    return found


def tries(name: str) -> int:
    """Return how often a proxy asks for one request."""
    if name == "envoy.yaml":
        return int(envoy("num_retries")) + 1
    found = re.search(r"(?:next_upstream_tries|retry-max-retries) (\d+)", text_of(name))
    assert found is not None
    return int(found[1])


def test_every_file_of_operators_is_in_the_package() -> None:
    """An installation has what the repository has."""
    project = tomllib.loads((OPS.parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["headway"]
    packed = {path for pattern in patterns for path in OPS.parent.glob(pattern)}
    shipped = {path for path in OPS.iterdir() if path.is_file() and path.suffix != ".py"}
    assert {OPS / name for name in FILES} < shipped <= packed


@pytest.mark.parametrize("name", FILES)
def test_there_are_two_addresses_to_change(name: str) -> None:
    """And the port that the proxy itself listens on; each is there once."""
    assert all(len(re.findall(rf"\b{port}\b", text_of(name))) == 1 for port in (8000, 8001, 8002))


@pytest.mark.parametrize("name", FILES)
def test_it_says_how_to_start_the_servers(name: str) -> None:
    """By options that there are, and as many retries as it makes itself."""
    (line,) = re.findall(r"^# Start the servers with: (.*)$", text_of(name), re.MULTILINE)
    known = {option for parameter in serve.params for option in parameter.opts}
    assert set(re.findall(r"--[\w-]+", line)) < known
    assert f"--overload refuse --retries-elsewhere {tries(name) - 1}" in line
    assert ("--request-start" in line) == (name != "vllm-router.sh"), "which sets no such header"
    assert f"--retries-elsewhere {tries(name) - 1}" in PAGE.read_text(encoding="utf-8")


def test_nginx() -> None:
    """What each of these lines is for is in the docs; without one of them requests are lost."""
    assert {
        "server 127.0.0.1:8001 max_fails=0",
        "server 127.0.0.1:8002 max_fails=0",
        "proxy_next_upstream error timeout http_429 http_503 non_idempotent",
        'proxy_set_header X-Request-Start "t=${msec}"',
        'proxy_set_header X-Envoy-Attempt-Count ""',
        "proxy_buffering off",
    } <= set(directives())


def test_envoy() -> None:
    """It retries elsewhere, as often as it has to, says which try it is, and asks for the load."""
    assert envoy("retriable_status_codes") == [429, 503]
    assert "retriable-status-codes" in envoy("retry_on").split(",")
    assert envoy("retry_host_predicate")[0]["name"].endswith("previous_hosts")
    assert envoy("max_retries") > 1000
    assert envoy("include_request_attempt_count") is True
    added = {
        entry["header"]["key"]: entry["header"]["value"]
        for entry in envoy("request_headers_to_add")
    }
    assert added == {
        "X-Request-Start": "t=%START_TIME(%s.%3f)%",
        "endpoint-load-metrics-format": "TEXT",
    }
    assert envoy("response_headers_to_remove") == ["endpoint-load-metrics"]
    assert envoy("timeout") == envoy("stream_idle_timeout") == "0s"


def test_the_shell_reads_vllm_routers(tmp_path: Path) -> None:
    """A program of its name gets the options as they are written."""
    fake = tmp_path / "vllm-router"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", str(OPS / "vllm-router.sh")],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.split()
    first = words.index("--worker-urls") + 1
    assert words[first : first + 2] == ["http://127.0.0.1:8001", "http://127.0.0.1:8002"]
    assert words[words.index("--policy") + 1] == "round_robin"
