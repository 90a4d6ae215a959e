#!/usr/bin/env bash
# Fills $VENV from $LOCK: torch with pip, which may know where a CPU build is, and the rest
# with uv, which takes half a minute where pip takes three. Run by `make setup`.
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }

if ! command -v "$PYTHON" > /dev/null; then
    say "Python 3.11 is needed and '$PYTHON' is not on the PATH; name yours with: make setup PYTHON=/path/to/python3.11"
    exit 2
fi
found=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$found" != 3.11 ]; then
    say "Python 3.11 is needed, for which the lock was made, and '$PYTHON' is $found; name another with: make setup PYTHON=/path/to/python3.11"
    exit 2
fi

torch=$(grep '^torch==' "$LOCK")
bin=$VENV/bin
[ -x "$bin/python" ] || "$PYTHON" -m venv "$VENV"

say "installing $torch"
"$bin/python" -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
"$bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch"
# torch/version.py by itself: torch does not import before its dependencies are there.
if ! "$bin/python" - << 'PYTHON'; then
import importlib.util, pathlib, runpy, sys
folder = pathlib.Path(importlib.util.find_spec("torch").origin).parent
sys.exit(runpy.run_path(str(folder / "version.py"))["cuda"] is not None)
PYTHON
    say "pip found only a CUDA build of torch, and the CPU engine needs a CPU build; name an index that has one with: make setup TORCH_INDEX=URL"
    exit 2
fi

say "installing everything else (2 GB)"
# Compiled once: with PYTHONDONTWRITEBYTECODE set, as in many images, each start of vLLM would compile its
# imports again, which takes seconds.
grep -v '^torch==' "$LOCK" |
    VIRTUAL_ENV=$VENV "$bin/uv" pip install --quiet --no-deps --compile-bytecode --requirements -
VIRTUAL_ENV=$VENV "$bin/uv" pip install --quiet --no-deps --no-build-isolation --editable .
say "done; try: make demo"
