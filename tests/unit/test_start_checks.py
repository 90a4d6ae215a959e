"""Mistakes told at once: a port in use, a model that is nowhere, an option that is none."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from headway.engines.vllm import start_checks
from headway.errors import UserError

hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")


def test_a_port_in_use_is_told() -> None:
    """By its number, and however the option is written; another port passes, and so do servers
    that listen elsewhere."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words in (["--port", port], [f"--port={port}", "--host", "127.0.0.1"]):
            with pytest.raises(UserError, match=f"Port {port} is in use"):
                start_checks.check_port(words)
        start_checks.check_port(["--port", port, "--uds", "/tmp/socket"])
    start_checks.check_port(["--port", port])


@pytest.mark.parametrize(
    "words",
    [
        ["--port", "many"],
        ["--port"],
        ["--port", "99999"],
        ["--port", "0"],
        ["--host", "no such host", "--port", "9"],
    ],
)
def test_what_is_in_doubt_is_left_to_vllm(words: list[str]) -> None:
    """It has its own words for other mistakes."""
    start_checks.check_port(words)


class Asked:
    """A hub that raises what the test says."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def model_info(self, model: str, timeout: float) -> None:
        if self.error is not None:
            raise self.error


def http_error(kind: type[Any]) -> Any:
    error = kind.__new__(kind)
    Exception.__init__(error, "no")
    return error


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (None, None),
        (http_error(errors.RepositoryNotFoundError), "none of that name"),
        (http_error(errors.GatedRepoError), None),
        (http_error(errors.HfHubHTTPError), None),
        (ConnectionRefusedError("refused"), "cannot be reached"),
        (TimeoutError("slow"), None),
    ],
)
def test_a_model_that_is_nowhere_is_told(
    error: Exception | None, word: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the hub is sure that it has none, or cannot be asked; never in doubt."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("VLLM_USE_MODELSCOPE", raising=False)
    monkeypatch.setattr(hub, "HfApi", lambda: Asked(error))
    if word is None:
        start_checks.check_model("org/model", [])
    else:
        with pytest.raises(UserError, match=word):
            start_checks.check_model("org/model", [])
    start_checks.check_model("s3://bucket/model", [])
    start_checks.check_model("org/model", ["--load-format", "runai_streamer"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        start_checks.check_model("org/model", [])
    (tmp_path / "models--org--model").mkdir()
    start_checks.check_model("org/model", [])


def test_a_folder_is_a_model(tmp_path: Path) -> None:
    """What is in it is vLLM's to judge; one that is not there is nobody's."""
    start_checks.check_model(str(tmp_path), [])
    with pytest.raises(UserError, match="no such file"):
        start_checks.check_model(str(tmp_path / "none"), [])


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (
            "unrecognized arguments: --max-model-lenn 5",
            "Unrecognized arguments: --max-model-lenn 5. Did you mean --max-model-len?",
        ),
        (
            "unrecognized arguments: --overlod=refuse",
            "Unrecognized arguments: --overlod=refuse. Did you mean --overload?",
        ),
        ("unrecognized arguments: --xyzzy", "Unrecognized arguments: --xyzzy."),
        ("argument --port: invalid int value: 'x'", "Argument --port: invalid int value: 'x'."),
    ],
)
def test_a_mistyped_option_is_a_sentence(message: str, sentence: str) -> None:
    """With what is most like it, of vLLM's options and ours."""
    assert start_checks.mistyped(message, ["--max-model-len", "--port"]) == sentence
