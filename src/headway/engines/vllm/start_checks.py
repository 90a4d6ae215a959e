"""Mistakes in a command line of ``headway serve`` that can be told before vLLM is imported.

vLLM and a model take from many seconds to minutes to load. What is certainly wrong is told
before; whatever is in doubt passes, and vLLM says what it makes of it.
"""

from __future__ import annotations

import difflib
import errno
import importlib.util
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from headway.errors import UserError

OWN_OPTIONS = (
    *("--policy", "--overload", "--slo", "--swap-gib", "--record", "--budgets", "--shadow"),
    *("--request-start", "--retries-elsewhere", "--grace", "--page"),
)

DEFAULT_PORT = 8000
"""vLLM's."""

HUB_TIMEOUT_S = 10.0
"""How long the model hub is asked for a model's name."""

NO_SOCKET = ("--headless", "--uds", "--grpc", "--config", "--data-parallel-multi-port-external-lb")
"""With one of these vLLM does not listen on ``--port``, or says elsewhere where it does."""

MULTIPLE_SERVERS = ("--api-server-count", "--data-parallel-size", "-dp", "-asc")
"""With one of these several processes listen on one port."""

OTHER_STORES = ("--download-dir", "--hf-config-path", "--load-format", "--config")
"""With one of these a model may come from where we do not look."""


def values_of(name: str, arguments: Sequence[str]) -> Iterator[str]:
    """Yield the values that *arguments* give to option *name*, with dashes or underscores."""
    for i, word in enumerate(arguments):
        given, has_value, value = word.partition("=")
        if given.replace("_", "-") != name:
            continue
        if has_value:
            yield value
        elif i + 1 < len(arguments):
            yield arguments[i + 1]


def last_value(name: str, arguments: Sequence[str]) -> str | None:
    """Return the value that counts, ``None`` where the option is not given."""
    return next(iter([*values_of(name, arguments)][::-1]), None)


def additional_config(arguments: Sequence[str]) -> Any:
    """Return the value of ``--additional-config``, ``None`` without one.

    Raises:
        UserError: It is no JSON.
    """
    text = last_value("--additional-config", arguments)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--additional-config is not valid JSON: {error}.") from None


def check_port(arguments: Sequence[str]) -> None:
    """Raise a sentence when another process listens where the server is to.

    Raises:
        UserError: It does.
    """
    named = {word.partition("=")[0].replace("_", "-") for word in arguments}
    if named.intersection(NO_SOCKET):
        return
    text = last_value("--port", arguments) or str(DEFAULT_PORT)
    host = last_value("--host", arguments) or ""
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # As vLLM does.
        if named.intersection(MULTIPLE_SERVERS):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            probe.bind((host, int(text)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"Port {text} is in use by another process; stop that,"
                    " or choose another with --port."
                ) from None


def check_model(model: str, arguments: Sequence[str]) -> None:
    """Raise a sentence when *model* is nowhere: no folder, and not on the hub.

    Raises:
        UserError: It is not there, or cannot be fetched.
    """
    if Path(model).expanduser().exists():
        return
    if model.startswith(("/", "./", "../", "~")):
        raise UserError(f"The model {model!r} is not there: no such file or folder.")
    named = {word.partition("=")[0].replace("_", "-") for word in arguments}
    is_elsewhere = named.intersection(OTHER_STORES) or os.environ.get("VLLM_USE_MODELSCOPE")
    if is_elsewhere or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        return
    if importlib.util.find_spec("huggingface_hub") is not None:
        _check_hub(model)


def _check_hub(model: str) -> None:
    from huggingface_hub import HfApi, constants, errors

    if (Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}").exists():
        return
    nowhere = f"The model {model!r} is no folder here and not in the hub's cache"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{nowhere}, and HF_HUB_OFFLINE forbids to fetch it.")
    try:
        HfApi().model_info(model, timeout=HUB_TIMEOUT_S)
    except errors.GatedRepoError:
        return  # vLLM says what to do.
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise UserError(
            f"{nowhere}, and the hub has none of that name that may be fetched"
            " (private ones need HF_TOKEN)."
        ) from None
    except Exception as error:  # Which HTTP library raises depends on the hub's version.
        names = {base.__name__ for base in type(error).__mro__}
        if names.intersection(("ConnectError", "ConnectionError")):
            raise UserError(f"{nowhere}, and the hub cannot be reached: {error}.") from None


def mistyped(message: str, known: Iterable[str]) -> str:
    """Return argparse's *message* as a sentence, with what was meant if an option is like it.

    argparse would print 300 lines of usage before it.
    """
    sentence = f"{message[:1].upper()}{message[1:].rstrip('.')}."
    if not message.startswith("unrecognized arguments:"):
        return sentence
    wrong = next((word for word in message.split() if word.startswith("-")), "").partition("=")[0]
    close = difflib.get_close_matches(wrong.replace("_", "-"), [*known, *OWN_OPTIONS], n=1)
    return f"{sentence} Did you mean {close[0]}?" if close else sentence
