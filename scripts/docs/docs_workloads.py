"""The reference page of the named workloads."""

from __future__ import annotations

from collections.abc import Iterator

from docs_text import table

from headway.slo import SloBook
from headway.workloads import named

SESSIONS = """
## Sessions

`turns` and `agents` consist of sessions: calls one after another, each with a prompt that contains
the whole session so far. `--rate` counts calls. The *N* calls of a run arrive within *N* / rate
seconds. The rate changes how often sessions begin, by the process of `--arrivals`. Pauses within a
session are the same at every rate, because no client thinks faster when the server has more
clients.

- A run should be longer than a session, about a minute for `turns` and two for `agents`. In a
  shorter run most calls are first calls, and the load still grows when the run ends.
- The next call comes after the assumed time of an answer (0.5 s, and 0.05 s per token) and
  a pause, even if the server was slower.
- `--rate` with a file (`--trace`) stretches the file's times and pauses, so make the file at the
  rate you want.
- The first call of an agent has its own class, `agent-start`, because only the tools'
  descriptions are cached for it.

## Prompts with a shared prefix

A request of a [trace](commands.md#headway-trace-convert) describes the beginning of its prompt with
`hash_ids`, as Mooncake's traces do. Each id stands for `hash_tokens` tokens (512 by default); the
prompt may cut the last one short. An id means the same tokens only together with all ids before it.
Two prompts share the blocks up to the first id that differs. Tokens after the last id are the
request's own. `prefix_id` and `prefix_tokens` describe a single shared prefix.

`headway simulate` and `headway capacity` reuse the KV of shared prefixes if a workload has some, as
vLLM does; `--no-prefix-caching` turns that off. They do not reuse the KV of answers, although vLLM
would find it for the next turn's prompt, so they compute a few hundred tokens per turn too many.
`headway bench` sends texts that share nothing.
"""
"""The text below the tables."""


def workloads_page() -> Iterator[str]:
    """The named workloads and their classes."""
    yield from [
        "# Named workloads",
        "",
        "`--workload NAME` of `headway simulate`, `capacity` and `bench`, and"
        " `headway trace synth NAME`: synthetic requests from published length statistics, the same"
        " for the same seed.",
        "",
    ]
    yield from table(
        ("workload", "what", "classes"),
        [
            (
                f"`{name}`",
                one.summary,
                ", ".join(f"`{slo_class}`" for slo_class in one.classes),
            )
            for name, one in named.WORKLOADS.items()
        ],
    )
    yield from ["", "## Their promises", ""]
    book = SloBook.load(named.SLO_FILE)
    yield from table(
        ("class", "first token within", "gaps of at most"),
        [(f"`{name}`", f"{c.ttft_s:g} s", f"{c.tbt_s:g} s") for name, c in book.classes.items()],
    )
    yield from SESSIONS.splitlines()
