"""The reference page of the named workloads."""

from __future__ import annotations

from collections.abc import Iterator

from docs_text import table

from headway.slo import SloBook
from headway.workloads import named

SESSIONS = """
## Sessions

`turns` and `agents` are made of sessions: the calls of one come after one another, and each
prompt holds all that was said before. `--rate` counts calls. The *N* calls of a run come within
*N* / rate seconds; what the rate changes is how fast sessions begin, by the process of
`--arrivals`. Pauses within a session are the same at every rate, because no client thinks faster
when the server has more clients.

- A run should be longer than a session, about a minute for `turns` and two for `agents`. In a
  shorter one most calls are first calls, and the load still grows when the run ends.
- The next call comes after the time an answer is assumed to take (0.5 s, and 0.05 s a token) and
  a pause, even when the server was slower.
- `--rate` with a file (`--trace`) stretches the file's times, pauses too: make the file at the
  rate you want.
- The first call of an agent has a class of its own, `agent-start`: nothing but the tools'
  descriptions is cached for it.

## Prompts that begin alike

A request of a [trace](commands.md#headway-trace-convert) says what its prompt begins with by
`hash_ids`, as Mooncake's traces do: each id stands for `hash_tokens` tokens (512 when not told),
the last one for fewer where the prompt ends. An id means the same tokens only together with all
ids before it. Two prompts share the blocks up to the first id that differs; what follows the last
id is the request's own. For one shared beginning, `prefix_id` and `prefix_tokens` say the same.

`headway simulate` and `headway capacity` reuse the KV of prompts that begin alike wherever a
workload has some, as vLLM does; `--no-prefix-caching` turns that off. Answers are not found
again, although vLLM would find them in the next turn's prompt: a few hundred tokens a turn are
computed that need not be. `headway bench` sends texts that share nothing.
"""
"""What the tables cannot say."""


def workloads_page() -> Iterator[str]:
    """The named workloads and their classes."""
    yield from [
        "# Named workloads",
        "",
        "`--workload NAME` of `headway simulate`, `capacity` and `bench`, and"
        " `headway trace synth NAME`: made up from published length statistics, the same for the"
        " same seed.",
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
