"""A request as the simulated engine holds it; the only place that knows its true length."""

from __future__ import annotations

from headway.engines.sim.times import GapSummary, Times
from headway.engines.virtual import Call, Outcome


class Job:
    """Progress of one request. Sizes in tokens, as vLLM counts them.

    ``num_computed`` counts tokens with KV (or in flight); the newest token has none yet.
    ``num_placeholders`` are output tokens scheduled but not seen yet (asynchronous only).
    ``num_stale`` of the ``num_in_flight`` tokens were scheduled before a preemption: their
    output is delivered, but nobody may resume before it is. ``host_tokens`` wait in host
    memory. ``num_blocks`` is what the request holds. ``emits`` tells that its prompt is done:
    each step gives it a token.
    """

    __slots__ = (
        "call",
        "emits",
        "host_tokens",
        "max_output",
        "num_blocks",
        "num_computed",
        "num_full_known",
        "num_in_flight",
        "num_output",
        "num_placeholders",
        "num_preemptions",
        "num_prompt",
        "num_shared",
        "num_stale",
        "outcome",
        "prefix",
        "request_id",
        "running",
        "stop_after",
        "table",
        "times",
    )

    def __init__(self, call: Call, outcome: Outcome, times: Times[float] | GapSummary) -> None:
        self.call = call
        self.outcome = outcome
        self.times = times
        self.request_id = call.request_id
        self.num_prompt = call.num_prompt_tokens
        self.prefix = call.shared_prefix or ""
        """Who has it too shares the first ``num_shared`` tokens; all it can, if not told."""
        self.num_shared = min(call.prefix_tokens or self.num_prompt, self.num_prompt)
        if call.shared_prefix is None:
            self.num_shared = 0
        self.max_output = call.max_output_tokens or call.num_output_tokens
        self.stop_after = min(call.num_output_tokens, self.max_output)
        self.num_output = 0
        self.num_computed = 0
        self.num_placeholders = 0
        self.num_in_flight = 0
        self.num_stale = 0
        self.num_preemptions = 0
        self.num_blocks = 0
        self.num_full_known = 0
        self.host_tokens = 0
        self.running = False
        self.emits = False
        self.table: list[object] = []

    @property
    def num_tokens(self) -> int:
        """Prompt and emitted tokens together."""
        return self.num_prompt + self.num_output

    def enter(self, at_s: float, phase: str) -> None:
        """Note that a phase begins."""
        phases = self.outcome.phases
        if not phases or phases[-1][1] != phase:
            phases.append((at_s, phase))
