"""A fast model of one server, for trying many orders: whoever ranks higher computes first.

Everybody who streams takes a token each step; prompts fill the step up to the tightest gap that
can still be kept, in order of rank, one of them cut. Lengths are known, so a request starts when
the KV curve with it stays within the cache. Whatever is lost is dropped: only promises count.
A step of unchanged streams needs no work of its own, so ten thousand cost no more than one.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from headway.kit.usage_curve import UsageCurve
from headway.latency.profile import StepCost
from headway.slo import Slo
from headway.workloads.schema import WorkloadRequest


@dataclass(frozen=True, slots=True)
class Server:
    """The machine as the model knows it. Sizes in tokens and requests."""

    cost: StepCost
    kv_tokens: int
    max_step_tokens: int
    max_num_running: int = 256


@dataclass(slots=True)
class Stream:
    """A request that started."""

    index: int
    rank: int
    ends_at_step: int
    num_context_tokens: int
    num_late: int = 0


@dataclass(slots=True)
class Prompt:
    """A prompt in progress."""

    index: int
    rank: int
    num_computed: int = 0


@dataclass(slots=True)
class Batch:
    """The prompt work of one step; ``done`` are the prompts it completes."""

    num_tokens: int = 0
    num_prompts: int = 0
    pairs: float = 0.0
    done: list[Prompt] = field(default_factory=list)


@dataclass(slots=True)
class Moment:
    """The state of one play."""

    now_s: float = 0.0
    step: int = 0
    context_tokens: int = 0
    waiting: list[tuple[int, int]] = field(default_factory=list)
    prompt: Prompt | None = None
    streams: dict[int, Stream] = field(default_factory=dict)
    curve: UsageCurve = field(default_factory=UsageCurve)
    is_blocked: bool = False


class StepModel:
    """Plays orders of the same requests. Deterministic.

    Args:
        slos: The promise of each request, by id.
    """

    def __init__(
        self, requests: Sequence[WorkloadRequest], slos: Mapping[str, Slo], server: Server
    ) -> None:
        self._requests = sorted(requests, key=lambda r: (r.arrived_at_s, r.id))
        self.slos = [slos[r.id] for r in self._requests]
        self._server = server
        self._prompt = [r.num_prompt_tokens for r in self._requests]
        self._output = [_output_tokens(r, server.kv_tokens) for r in self._requests]
        self._gap_s = [math.inf if s.tbt_s is None else s.tbt_s for s in self.slos]
        self._late_allowed = [(n - 1) // 100 for n in self._output]
        self._due_s = [self._first_due_s(i) for i in range(len(self._requests))]
        self._ends_s = [
            r.arrived_at_s + (math.inf if s.jct_s is None else s.jct_s)
            for r, s in zip(self._requests, self.slos, strict=True)
        ]

    @property
    def requests(self) -> Sequence[WorkloadRequest]:
        """The requests by arrival."""
        return self._requests

    def due_at_s(self, index: int) -> float:
        """Return when the first token of a request is due at the latest."""
        return self._due_s[index]

    def work_s(self, index: int) -> float:
        """Return roughly the engine seconds a request takes: prompt, and a share of its steps."""
        cost, prompt, output = self._server.cost, self._prompt[index], self._output[index]
        context_s = cost.per_context_s * (prompt + output / 2)
        return (
            cost.per_token_above_s * (prompt + output)
            + cost.per_pair_s * prompt**2 / 2
            + output * context_s
        )

    def play(self, order: Sequence[int]) -> set[int]:
        """Return the requests whose promise is kept when *order* decides; others are dropped."""
        rank = {index: at for at, index in enumerate(order)}
        arrivals = sorted(rank, key=lambda i: self._requests[i].arrived_at_s)
        state, kept, at = Moment(), set[int](), 0
        while True:
            if not (state.waiting or state.prompt or state.streams):
                if at == len(arrivals):
                    return kept
                state.now_s = max(state.now_s, self._requests[arrivals[at]].arrived_at_s)
            while at < len(arrivals) and (self._requests[arrivals[at]].arrived_at_s <= state.now_s):
                heapq.heappush(state.waiting, (rank[arrivals[at]], arrivals[at]))
                state.is_blocked = False
                at += 1
            next_s = self._requests[arrivals[at]].arrived_at_s if at < len(arrivals) else math.inf
            self._step(state, next_s, kept)

    # -- one step, or many alike ------------------------------------------------------------

    def _step(self, state: Moment, next_arrival_s: float, kept: set[int]) -> None:
        decode_s = self._seconds(len(state.streams), state.context_tokens)
        limit_s = min(
            (g for s in state.streams.values() if (g := self._gap_s[s.index]) >= decode_s),
            default=math.inf,
        )
        batch = self._fill(state, limit_s)
        if batch.num_tokens:
            self._advance(state, self._step_s(state, batch), 1, kept)
        elif state.streams:
            self._glide(state, next_arrival_s, kept)
        for prompt in batch.done:
            self._first_token(state, prompt, kept)

    def _step_s(self, state: Moment, batch: Batch, chunk: int = 0, prefix: int = 0) -> float:
        """Return the seconds of a step with this prompt work and one more chunk."""
        cost, streams = self._server.cost, len(state.streams)
        pairs = batch.pairs + chunk * (prefix + chunk / 2)
        prompts = batch.num_prompts + (chunk > 0)
        seconds = self._seconds(streams + batch.num_tokens + chunk, state.context_tokens)
        seconds += streams * cost.per_decode_s + prompts * cost.per_prefill_s
        return seconds + pairs * cost.per_pair_s

    def _seconds(self, num_tokens: int, context_tokens: int) -> float:
        cost = self._server.cost
        above = max(num_tokens - cost.knee_tokens, 0)
        tokens_s = (num_tokens - above) * cost.per_token_s + above * cost.per_token_above_s
        return cost.fixed_s + tokens_s + cost.per_context_s * context_tokens

    def _fill(self, state: Moment, limit_s: float) -> Batch:
        """Give prompts, in order of rank, what the step has room for."""
        batch = Batch()
        while (prompt := state.prompt or self._start(state, len(batch.done))) is not None:
            state.prompt = prompt
            wanted = self._prompt[prompt.index] - prompt.num_computed
            chunk = self._chunk(state, limit_s, batch, prompt.num_computed, wanted)
            if chunk <= 0:
                break
            batch.pairs += chunk * (prompt.num_computed + chunk / 2)
            batch.num_tokens += chunk
            batch.num_prompts += 1
            prompt.num_computed += chunk
            if chunk < wanted:
                break
            batch.done.append(prompt)
            state.prompt = None
        return batch

    def _chunk(self, state: Moment, limit_s: float, batch: Batch, prefix: int, wanted: int) -> int:
        """Return the most tokens of a prompt that keep the step within its limit."""
        room = self._server.max_step_tokens - len(state.streams) - batch.num_tokens
        most = min(wanted, room)
        if most <= 0 or self._step_s(state, batch, most, prefix) <= limit_s:
            return max(most, 0)
        fits, too_many = 0, most
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self._step_s(state, batch, middle, prefix) <= limit_s:
                fits = middle
            else:
                too_many = middle
        return fits

    def _start(self, state: Moment, num_starting: int) -> Prompt | None:
        """Return the next request in rank that still can be on time, if the cache has room."""
        while state.waiting and not state.is_blocked:
            rank, index = state.waiting[0]
            prompt, output = self._prompt[index], self._output[index]
            alone_s = self._seconds(min(prompt, self._server.max_step_tokens), 0)
            if state.now_s + alone_s > self._due_s[index] or prompt >= self._server.kv_tokens:
                heapq.heappop(state.waiting)
                continue
            steps = -(-prompt // self._server.max_step_tokens)
            finish = state.step + steps + output - 1
            running = len(state.streams) + num_starting
            peak = state.curve.peak_with(prompt - steps + 1, state.step, finish, 0.0)
            if running >= self._server.max_num_running or peak > self._server.kv_tokens:
                state.is_blocked = True
                return None
            heapq.heappop(state.waiting)
            state.curve.put(str(index), prompt - steps + 1, state.step, finish)
            return Prompt(index, rank)
        return None

    def _glide(self, state: Moment, next_arrival_s: float, kept: set[int]) -> None:
        """Decode until somebody ends, arrives, or would be late."""
        base_s = self._step_s(state, Batch())
        growth_s = self._server.cost.per_context_s * len(state.streams)
        steps = min(s.ends_at_step for s in state.streams.values()) - state.step
        if next_arrival_s < math.inf:
            # Steps grow, so this many at the first one's length are not too few by much.
            steps = min(steps, max(int((next_arrival_s - state.now_s) / base_s), 1))
        tightest_s = min(self._gap_s[s.index] for s in state.streams.values())
        if base_s + (steps - 1) * growth_s > tightest_s or self._held(state, steps) is not None:
            steps = 1
        duration_s = steps * base_s + growth_s * steps * (steps - 1) / 2
        self._advance(state, duration_s, steps, kept)

    def _advance(self, state: Moment, duration_s: float, steps: int, kept: set[int]) -> None:
        """Let *steps* steps pass: gaps, ends, and whoever no longer fits the cache."""
        state.now_s += duration_s
        state.step += steps
        state.context_tokens += steps * len(state.streams)
        ended: list[Stream] = []
        for stream in state.streams.values():
            stream.num_context_tokens += steps
            if steps == 1 and duration_s > self._gap_s[stream.index]:
                stream.num_late += 1
            if stream.num_late > self._late_allowed[stream.index]:
                ended.append(stream)
            elif stream.ends_at_step <= state.step:
                ended.append(stream)
                if state.now_s <= self._ends_s[stream.index]:
                    kept.add(stream.index)
        for stream in ended:
            self._leave(state, stream)
        while (loser := self._held(state, 1)) is not None:
            self._leave(state, loser)

    def _held(self, state: Moment, steps: int) -> Stream | None:
        """Return the lowest stream if *steps* more do not fit the cache; it is dropped then."""
        held = state.context_tokens + steps * len(state.streams)
        if state.prompt is not None:
            held += self._prompt[state.prompt.index]
        if held <= self._server.kv_tokens or len(state.streams) < 2:
            return None
        return max(state.streams.values(), key=lambda s: s.rank)

    def _leave(self, state: Moment, stream: Stream) -> None:
        del state.streams[stream.index]
        state.context_tokens -= stream.num_context_tokens
        state.curve.discard(str(stream.index))
        state.is_blocked = False

    def _first_token(self, state: Moment, prompt: Prompt, kept: set[int]) -> None:
        index = prompt.index
        state.curve.discard(str(index))
        state.is_blocked = False
        if state.now_s > self._due_s[index]:
            return
        if self._output[index] == 1:
            if state.now_s <= self._ends_s[index]:
                kept.add(index)
            return
        ends = state.step + self._output[index] - 1
        state.streams[index] = Stream(index, prompt.rank, ends, self._prompt[index])
        state.context_tokens += self._prompt[index]
        state.curve.put(str(index), self._prompt[index] + 1, state.step, ends)

    def _first_due_s(self, index: int) -> float:
        request, slo = self._requests[index], self.slos[index]
        due_s = request.arrived_at_s + (math.inf if slo.ttft_s is None else slo.ttft_s)
        if slo.jct_s is not None:
            decode_s = (self._output[index] - 1) * self._server.cost.fixed_s
            due_s = min(due_s, request.arrived_at_s + slo.jct_s - decode_s)
        return due_s


def _output_tokens(request: WorkloadRequest, kv_tokens: int) -> int:
    """Return the tokens a request emits: its bound and the whole cache end it too."""
    bound = request.max_output_tokens or request.num_output_tokens
    return max(min(request.num_output_tokens, bound, kv_tokens - request.num_prompt_tokens), 1)
