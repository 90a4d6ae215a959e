"""Write the pages of the docs that repeat the code: commands, policies, settings and so on.

    python scripts/docs/docs_reference.py            # write them
    python scripts/docs/docs_reference.py --check    # fail when one is out of date

``tests/unit/test_reference.py`` asserts that they are up to date.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click
from docs_commands import commands_page
from docs_constants import constants_page
from docs_text import attributes_of, escaped, markdown, table
from docs_traces import traces_page
from docs_workloads import workloads_page
from docstring_parser import DocstringStyle, parse

from headway import registry
from headway.config import Settings
from headway.engines.vllm import account, channel, edge, embedded, headers, promise, proxy_headers
from headway.engines.vllm.clock import OLDEST_S
from headway.metrics import prometheus
from headway.policy import decide
from headway.slo import EXPLAIN, Slo
from headway.slo_rules import CLASS_NAMES, MAX_PROMISE_S, MAX_WEIGHT, SPANS
from headway.slo_tenants import KEY_TENANT_DIGITS, TENANT_FIELDS, UNPROMISED
from headway.workloads import public

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
WRITTEN = "<!-- Written by scripts/docs/docs_reference.py from the code; do not edit. -->"


def main(argv: Sequence[str]) -> int:
    """Write all pages, or with ``--check`` say which differ; return the exit code."""
    stale = []
    for path, text in pages().items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path)
        if "--check" not in argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in stale:
        click.echo(f"{'differs' if '--check' in argv else 'wrote'}: {path.relative_to(ROOT)}")
    return int(bool(stale) and "--check" in argv)


def pages() -> dict[Path, str]:
    """Return every generated page by its path."""
    reference = DOCS / "reference"
    written: dict[str, Callable[[], Iterable[str]]] = {
        "commands": commands_page,
        "constants": constants_page,
        "policies": policies_page,
        "promises": promises_page,
        "settings": settings_page,
        "traces": traces_page,
        "workloads": workloads_page,
    }
    made = {reference / f"{name}.md": _page(lines()) for name, lines in written.items()}
    made[reference / "metrics.md"] = prometheus.reference()
    made[DOCS / "decisions" / "index.md"] = _page(decisions_page())
    return made


def _page(lines: Iterable[str]) -> str:
    return "\n".join([WRITTEN, "", *lines]).rstrip() + "\n"


def policies_page() -> Iterator[str]:
    """Every preset: its own words, and its options."""
    yield from [
        "# Policies",
        "",
        f"`--policy NAME` chooses a policy; the default is `{registry.DEFAULT}`. Each policy runs"
        " in the server, in the simulator and in vLLM's scheduler under a virtual clock. Set its"
        " options with `--options '{\"max_wait_s\": 60}'` in a virtual run, or with"
        " [`options`](settings.md#settings-of-a-server) in a server's settings."
        " [Rivals](../rivals.md) says how faithful the published ones are.",
        "",
        "`headway serve --policy stock` is vLLM alone. `headway simulate` also knows `oracle`,"
        " which knows every length in advance. With `--engine vllm` it also knows `stock` (vLLM's"
        " own code as shipped), `stock-static` (with the one setting that is best over the whole"
        " sweep) and `stock-hindsight` (with the best setting for each load).",
    ]
    for name, preset in registry.PRESETS.items():
        yield from ["", f"## {name}", ""]
        source = decide if preset is registry.headway else inspect.getmodule(preset)
        words = markdown(inspect.getdoc(source) or "")
        words = words.removeprefix(f"`{name}`: ").strip()
        yield words[:1].upper() + words[1:]
        rows = list(_options(preset))
        if rows:
            yield from ["", *table(("option", "default", "meaning"), rows)]
        else:
            yield from ["", "No options."]


def _options(preset: Callable[..., Any]) -> Iterator[tuple[str, str, str]]:
    text = parse(inspect.getdoc(preset) or "", DocstringStyle.GOOGLE)
    meanings = {
        name.strip(): param.description or ""
        for param in text.params
        for name in param.arg_name.split(",")
    }
    for name, parameter in inspect.signature(preset).parameters.items():
        default = "none" if parameter.default is None else f"`{_literal(parameter.default)}`"
        yield f"`{name}`", default, escaped(markdown(meanings[name]))


PROXY_HEADERS = (
    (
        f"`{proxy_headers.REQUEST_START.decode()}`",
        "`--request-start`",
        "The time at which a proxy received the request, in Unix seconds (10 digits), milliseconds"
        " (13) or microseconds (16), with or without decimals and a leading `t=`. Of several times,"
        " separated by commas, the earliest counts. Promises run from this time, but at most from"
        f" {OLDEST_S:g} s ago. A time more than {proxy_headers.SENSELESS_S / 3600:g} h ago, or more"
        f" than {proxy_headers.SKEW_S:g} s in the future, is invalid.",
    ),
    (
        f"`{proxy_headers.ATTEMPT_COUNT.decode()}`",
        "`--retries-elsewhere N`",
        "The number of the try, from 1. A refusal after N earlier tries is the last one, and its"
        " appointment takes the room it needs; an earlier refusal takes none. Without the header"
        " each takes 1/(N + 1) of it.",
    ),
)
"""Headers that say something of a request's way to the server."""


def promises_page() -> Iterator[str]:
    """What a request may carry, in the body and in headers."""
    by_field: dict[str, list[str]] = {}
    for header, name in {**headers.OWN, **headers.OTHERS}.items():
        by_field.setdefault(name, []).append(header)
    by_field["slo_tpot_ms"].append(headers.TOKENS_PER_S)
    by_field[EXPLAIN] = [headers.EXPLAIN_HEADER]
    yield from [
        "# Promises in a request",
        "",
        "How to use them: [clients](../how-to/clients.md). Body over header over API key over model"
        " over default, field by field. If several headers set one field, the first in its row"
        " counts.",
        "",
    ]
    rows = [
        (
            f"`{plain}`",
            f"`{name}`",
            ", ".join(f"`{header}`" for header in by_field[name]),
            _field_of_slo(name),
        )
        for plain, name in promise.BODY_FIELDS.items()
    ]
    yield from table(("`slo` in the body", "`vllm_xargs`", "headers", "meaning"), rows)
    yield from [
        "",
        f"Spans are above 0 and at most {MAX_PROMISE_S:,.0f} s (a week), weights at most"
        f' {MAX_WEIGHT:,.0f}. A pause may also be `inf`, in JSON the text `"inf"`, and is never'
        f" shorter than the gap promised beside it. `{headers.TOKENS_PER_S}` is in tokens a second,"
        " and its inverse becomes the time per token. Any other header that begins with `X-Slo-`,"
        " and any other `slo_` name in the body, is answered with 400.",
        "",
        "## Who pays",
        "",
        "No field of the request's body names the tenant. It comes from, in this order:",
        "",
        "1. The API key (bearer token, else `x-api-key`), if it is one of the server's"
        " (`--api-key`) or the SLO file lists it in `[keys]` or `[tenants]`. Its tenant is the one"
        f" that lists it, else `key-` and the first {KEY_TENANT_DIGITS} hexadecimal digits of its"
        " SHA-256. A key of `gateway_keys` has no tenant of its own.",
        f"2. The header that `tenant_header` names, without surrounding spaces: {CLASS_NAMES}, else"
        " 400. It also counts beside an unknown key, unless the server has keys and the client"
        " shows neither one of them nor a gateway's.",
        "3. Otherwise the request has no tenant.",
        "",
        "A tenant without a table has the share 1 and no target.",
        "",
        "## What proxies say",
        "",
        *table(("header", "believed with", "meaning"), PROXY_HEADERS),
        "",
        "A request without these headers is served as usual. An invalid value is ignored, because"
        " it is not the client's mistake; `headway_request_start_total` counts those of"
        " `x-request-start`. [Keep it safe](../how-to/secure.md#behind-a-proxy) says who may set"
        " these headers.",
        "",
        "## Endpoints on which promises count",
        "",
        *(f"- `POST {path}`" for path in sorted(edge.PATHS)),
        "",
        "Requests of other endpoints hold no promise. These endpoints can put the account of"
        f" lateness into the answer: {', '.join(f'`POST {path}`' for path in account.PATHS)}.",
    ]


def _field_of_slo(name: str) -> str:
    if name == EXPLAIN:
        return (
            "Not a promise: `true` or `1` adds `usage.headway` to the answer,"
            " [how late it was](../how-to/clients.md#ask-how-late-it-was)."
        )
    attributes = attributes_of(Slo)
    key = {"slo_class": "class_name", "slo_weight": "weight"}.get(name)
    text = attributes[key or name.removeprefix("slo_").removesuffix("_ms") + "_s"]
    if key == "class_name":
        return "A class of the server's SLO file."
    return text.replace("Seconds", "Milliseconds") if name.endswith("_ms") else text


def settings_page() -> Iterator[str]:
    """Settings of a server, the SLO file, environment variables, what serve sets."""
    yield from [
        "# Settings",
        "",
        "## Settings of a server",
        "",
        "vLLM's `--additional-config '{\"headway\": {...}}'` accepts these settings. The options of"
        " [`headway serve`](commands.md#headway-serve) set them.",
        "",
    ]
    attributes = attributes_of(Settings)
    yield from table(
        ("setting", "default", "meaning"),
        [(f"`{f.name}`", _default(f), escaped(attributes[f.name])) for f in fields(Settings)],
    )
    yield from ["", "## The SLO file", "", *slo_file_lines()]
    yield from ["", "## Environment", ""]
    yield from table(("variable", "meaning"), ENVIRONMENT)
    yield from [
        "",
        "## What `headway serve smollm2` sets on a CPU",
        "",
        "Your own value for any of these overrides it.",
        "",
        *(f"- `{' '.join(words)}`" for words in embedded.EMBEDDED_CPU_ARGUMENTS),
        "- " + ", ".join(f"`{k}={v}`" for k, v in embedded.QUIET_ENVIRONMENT.items()),
    ]


ENVIRONMENT = (
    (
        f"`{channel.CHANNEL_VARIABLE}`",
        "Folder of the channel between scheduler and HTTP server; without it nothing is counted."
        " `headway serve --page` makes one.",
    ),
    (
        f"`{channel.LOAD_CHANNEL_VARIABLE}`",
        "Folder of the channel for load reports (`endpoint-load-metrics`); without it answers carry"
        " only vLLM's own. `headway serve` makes one.",
    ),
    (
        f"`{edge.SLO_FILE_VARIABLE}`",
        "SLO file of the middleware; by default the one in the scheduler's settings."
        " `headway serve --slo` sets both.",
    ),
    (
        "`HEADWAY_CACHE`",
        "Folder of the converted small model; by default `headway` in the user's cache.",
    ),
    (f"`{public.TRACES_VARIABLE}`", "Folder of the [public traces](../../experiments/README.md)."),
    ("`VLLM_API_KEY`", "The server's API key, for `headway top` and `headway explain` as well."),
)


def slo_file_lines() -> Iterator[str]:
    """The tables of an SLO file."""
    yield "TOML, spans in seconds; an example with every table is in"
    yield "[choose promises](../how-to/choose-slos.md#the-file)."
    yield ""
    spans = ", ".join(f"`{name}`" for name in SPANS)
    yield from table(
        ("table", "keys", "meaning"),
        [
            ("`default`", "a class", "Class of requests that ask for nothing; none by default."),
            (
                "`[classes.NAME]`",
                f"{spans}, `weight`, `target`",
                "One class. The file needs at least one, unless it has only tenants."
                " `target` is the share of its promises to keep, as in 0.95.",
            ),
            ("`[models.NAME]`", "`class`", "Class by the name that clients put into `model`."),
            (
                "`[keys.KEY]`",
                "`class`, `classes`",
                "By API key, written as `sha256:` and its digest: the class of its requests that"
                " name none, and the classes that they may name.",
            ),
            (
                "`[limits]`",
                f"{spans}, `weight` (each `{{min, max}}`), `classes`",
                "Bounds of the promises that clients ask for themselves.",
            ),
            (
                "`[tenants.NAME]`",
                ", ".join(f"`{name}`" for name in TENANT_FIELDS),
                "A tenant: its share of the server relative to the others (1 by default), the share"
                " of its promises to keep, and a list of its API keys, written as in `[keys]`.",
            ),
            (
                "`tenant_header`",
                "a header",
                "Header in which a gateway names the tenant; none by default.",
            ),
            (
                "`gateway_keys`",
                "a list of API keys",
                "Keys of gateways, which send requests of other tenants and name them in the"
                " header.",
            ),
            (
                "`unpromised`",
                " or ".join(f'`"{way}"`' for way in UNPROMISED),
                "How requests without a promise are served: in their turn by first come, first"
                " served (the default), or with the capacity that the others leave.",
            ),
        ],
    )
    yield ""
    yield "[Who pays for a request](promises.md#who-pays)."


def decisions_page() -> Iterator[str]:
    """The decisions, by their titles."""
    yield from [
        "# Decisions",
        "",
        "Each page explains one choice that is hard to undo and names the test that enforces it.",
        "",
    ]
    for path in sorted((DOCS / "decisions").glob("[0-9]*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        yield f"- [{title}]({path.name})"


def _default(one: Any) -> str:
    if one.default is MISSING:
        return "`{}`"
    return "none" if one.default is None else f"`{_literal(one.default)}`"


def _literal(value: Any) -> str:
    """Return a default as one writes it in JSON."""
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
