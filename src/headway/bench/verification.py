"""What ``headway verify`` does, in order: stock, Headway, stock again, Headway under pressure.

Stock's rounds lie around Headway's, so that a machine that grows slower or faster in the meantime
favours nobody.
"""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import dataclass, field

from headway.bench import verify_tokens
from headway.bench.access import Access
from headway.bench.session import Plan
from headway.bench.show import Display
from headway.bench.speed import Speed, measure_speed
from headway.bench.verify_counts import Counts, features, look, step_figures
from headway.bench.verify_rounds import Sizes, mixed_plan, round_plan, served, sized
from headway.bench.verify_rows import NO_BOUND, NO_PAGE, NO_STEPS, Findings
from headway.bench.verify_servers import Servers, vllm_at
from headway.bench.verify_tokens import NUM_PROMPTS, TokenComparison, answers, tiny_arguments
from headway.errors import HeadwayError

ROUNDS = 4
"""Rounds of each server, half of stock's before and half after Headway's."""

LEAST_ROUND_S, MOST_ROUND_S = 8.0, 60.0
NUM_STARTS = 4
FIXED_S = 90.0
"""Seconds of what no budget shortens, on two cores: answers compared, warm-ups, the first look."""

ROUNDS_OF_TIME = 2 * ROUNDS + 2 * 3.5
"""In rounds: those of both servers, and the mixed load of both with its last answers."""

UNKNOWN_TINY = ["--max-model-len", "512", "--num-gpu-blocks-override", "80", "--swap-gib", "0.02"]
"""What makes a cache small whose sizes are not known: 1,280 tokens in vLLM's usual blocks."""

STEP_ROWS = ("step_error", "beyond_bound", "plan")
"""What is read of the Headway server's own counts."""

TELL_WITHIN_S = 1.5
"""A scheduler tells its counts twice a second, and once more when it is idle."""


@dataclass(slots=True)
class Verification:
    """One run and what it has found so far.

    Attributes:
        budget_s: Seconds the run may take, starts included.
        vllm_args: Arguments the servers were started with.
    """

    servers: Servers
    access: Access
    shown: Display
    budget_s: float
    vllm_args: tuple[str, ...] = ()
    seen: Findings = field(default_factory=Findings)
    sizes: Sizes | None = None
    mixed: Plan | None = None
    model: str = ""
    _speed: Speed | None = None
    _answers: list[tuple[str, ...]] = field(default_factory=list)

    def run(self) -> Findings:
        """Fill the findings.

        Raises:
            HeadwayError: A server ended or failed; what was found before is in :attr:`seen`.
        """
        with self.servers.stock() as url:
            asyncio.run(self._first_look(url))
            asyncio.run(self._rounds(url, "stock", range(ROUNDS // 2)))
        with self.servers.headway() as url:
            asyncio.run(self._headway(url))
        with self.servers.stock() as url:
            asyncio.run(self._rounds(url, "stock", range(ROUNDS // 2, ROUNDS)))
            asyncio.run(self._mixed(url, "stock"))
            asyncio.run(self._ask_again(url))
        self._press()
        return self.seen

    async def _first_look(self, url: str) -> None:
        """Find the model, the machine's speed and the size of a round; keep stock's answers."""
        self.model = (await vllm_at(url, self.access)).model
        self.shown.stage("stock vLLM: how fast is this machine?")
        self._speed = await measure_speed(url, self.model, self.access)
        self.sizes = await sized(url, self._round_s(), self.access)
        self.shown.stage(f"a round is {self.sizes.round_requests} requests")
        self._answers.append(await answers(url, self.model, self.access))

    def _round_s(self) -> float:
        left_s = self.budget_s - FIXED_S - NUM_STARTS * self.servers.started_s
        return min(max(left_s / ROUNDS_OF_TIME, LEAST_ROUND_S), MOST_ROUND_S)

    async def _rounds(self, url: str, who: str, numbers: range) -> None:
        assert self.sizes is not None
        into = self.seen.stock if who == "stock" else self.seen.headway
        for number in numbers:
            self.shown.stage(f"{who}: round {number + 1} of {ROUNDS}, without promises")
            plan = round_plan(self.sizes.round_requests, number, warm_up=number == numbers[0])
            into.append((await served(url, plan, self.access, self.shown)).run)

    async def _headway(self, url: str) -> None:
        """Serve all of Headway's rounds and the mixed load; read what it counts of its steps."""
        await self._rounds(url, "headway", range(1))
        self.seen.features = await features(url, self.access)
        before = await self._counts(url)
        await self._rounds(url, "headway", range(1, ROUNDS))
        await self._mixed(url, "headway")
        after = await self._counts(url)
        if not after.are_headways:
            self.seen.why_not |= dict.fromkeys(("hooks", *STEP_ROWS), NO_PAGE)
            return
        self.seen.num_asides = round(after.total("headway_steps_aside_total"))
        self.seen.steps = step_figures(after.since(before))
        self.seen.why_not |= dict.fromkeys(STEP_ROWS, NO_STEPS if not self.seen.steps else NO_BOUND)

    async def _counts(self, url: str) -> Counts:
        await asyncio.sleep(TELL_WITHIN_S)
        return await look(url, self.access)

    async def _mixed(self, url: str, who: str) -> None:
        assert self.sizes is not None
        assert self._speed is not None
        if self.mixed is None:
            self.mixed, slos = mixed_plan(self.seen.stock, self._speed, self.sizes)
            self.seen.promises = {n: slo.stamp() for n, slo in slos.items()}
        self.shown.stage(f"{who}: promises, {self.mixed.rate_rps:g} requests a second")
        self.seen.mixed[who] = (await served(url, self.mixed, self.access, self.shown)).run

    async def _ask_again(self, url: str) -> None:
        """Keep stock's answers in batches of half the size: how far they depend on the batch."""
        self.shown.stage("stock: the answers again, in other batches")
        self._answers.append(await answers(url, self.model, self.access, NUM_PROMPTS // 2))

    def _press(self) -> None:
        """Compare answers under forced preemption; a server that cannot be pressed is a reason."""
        told = self.seen.features
        if not told and self.servers.can_press:
            self.seen.why_not["tokens"] = "Nothing is known of the KV cache to make it small."
            return
        args, swaps = tiny_arguments(told, self.vllm_args) if told else ([], False)
        if not swaps:
            self.seen.why_not["swap"] = (
                "Swap could not be tried: another KV connector is there, a KV cache of several"
                " kinds, or one of blocks larger than most requests."
            )
        has_started = False
        try:
            with self.servers.pressed(args) as url:
                has_started = True
                asyncio.run(self._pressed(url))
        except HeadwayError as error:
            if has_started:
                raise  # One that does not start may be a cache that vLLM cannot make so small.
            self.seen.why_not["tokens"] = str(error)

    async def _pressed(self, url: str) -> None:
        self.shown.stage("headway: the answers under forced preemption and swap")
        before = await self._counts(url)
        found = await answers(url, self.model, self.access)
        preempted = (await self._counts(url)).since(before).preempted()
        stock, again = self._answers
        self.seen.tokens = TokenComparison(
            len(found),
            verify_tokens.differing(found, stock),
            verify_tokens.differing(again, stock),
            preempted,
        )
        if not sum(preempted.values()):
            self.seen.why_not["tokens"] = self._how_to_press(self.seen.tokens)

    def _how_to_press(self, found: TokenComparison) -> str:
        same = f"{found.num_answers - found.num_differing} of {found.num_answers}"
        text = f"Nobody was preempted; {same} answers are stock's."
        if self.servers.can_press:
            return text
        told = self.seen.features
        args = tiny_arguments(told)[0] if told else UNKNOWN_TINY
        return f"{text} To force it, start Headway with {shlex.join(args)} --page, or verify MODEL."
