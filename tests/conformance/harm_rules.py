"""What no harm means: what may differ between a load on stock vLLM and the same on Headway."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from harm_runs import Pair
from harm_scenarios import NUM_WARM_UP, Scenario, blocks_of

from headway.engines import wire
from headway.engines.virtual import Outcome

FEW = 4
"""Requests at a time that are still light load."""

SLACK = 1.05
"""How much later than stock a first token may be, beside one step."""

GUESS = 1.4
"""What a refusal may be wrong by: it comes before anybody knows how long the steps will be."""

SHARED_WITHIN = 0.03
"""The bound of ``test_same_as_stock.py`` where prompts share what the same step computes."""

ROUNDING_S = 1e-9
MOST_STEPS_TO_END = 3  # One in flight, the next, and its own.
SERVED = ("stop", "length")


# -- (a) nothing is lost ------------------------------------------------------------------------


def assert_all_served(pair: Pair) -> None:
    """What stock serves Headway serves, token by token, but for refusals that may be."""
    for name, theirs in pair.stock.items():
        ours = pair.ours[name]
        left = theirs.call.abort_at_s is not None
        if is_refused(ours):
            assert_may_be_refused(pair, ours)
        elif not (left and "abort" in (theirs.finish_reason, ours.finish_reason)):
            assert ours.finish_reason == theirs.finish_reason, (name, theirs, ours)
            assert len(ours.emitted_at_s) == len(theirs.emitted_at_s), (name, theirs, ours)


def is_refused(outcome: Outcome) -> bool:
    """Return whether a client got 429."""
    return isinstance(wire.parse(outcome.stop_reason), wire.Refused)


def assert_may_be_refused(pair: Pair, outcome: Outcome) -> None:
    """Only whoever has a promise, before any token, and not by an idle server."""
    call, at_s = outcome.call, outcome.ended_at_s
    assert at_s is not None
    assert call.xargs, f"refused without a promise: {outcome}"
    assert not outcome.emitted_at_s, f"refused after a token: {outcome}"
    waited_s = at_s - call.arrived_at_s
    if waited_s > promised_s(outcome):
        return  # By the clock.
    others = [o for o in pair.ours.values() if is_live(o, at_s)]
    assert any(not is_refused(o) or o.ended_at_s != at_s for o in others), f"idle: {outcome}"
    if pair.scenario.overload == "demote":
        steps_s = MOST_STEPS_TO_END * pair.longest_step_s(0.0, math.inf)
        is_ending = waited_s >= longest_wait_s(pair.scenario) - 2 * steps_s
        is_measured = sum(o.finish_reason in SERVED for o in ended_by(pair, at_s)) >= 32
        assert is_ending or is_measured, f"refused by a rate never measured: {outcome}"


def promised_s(outcome: Outcome) -> float:
    """Return the shortest span promised to the first token or the end."""
    xargs = outcome.call.xargs
    spans = [xargs[key] / 1000 for key in ("slo_ttft_ms", "slo_jct_ms") if key in xargs]
    return min(spans, default=math.inf)


def longest_wait_s(scenario: Scenario) -> float:
    """Return the bound on waiting of Headway's settings."""
    options = scenario.headway().get("options", {})
    return float(options.get("max_wait_s", 300.0))


def is_live(outcome: Outcome, at_s: float) -> bool:
    """Return whether a request was on the server just before *at_s*, or ended then."""
    assert outcome.ended_at_s is not None
    return outcome.call.arrived_at_s <= at_s <= outcome.ended_at_s


def ended_by(pair: Pair, at_s: float) -> Iterator[Outcome]:
    """Yield what Headway had ended by an instant."""
    for outcome in pair.ours.values():
        if outcome.ended_at_s is not None and outcome.ended_at_s <= at_s:
            yield outcome


# -- (b), (d) light load --------------------------------------------------------------------------


def is_light(pair: Pair) -> bool:
    """Return whether stock never had a queue: no two prompts at a time, and few streams."""
    spans = []
    for name in pair.names:
        outcome = pair.stock[name]
        first_s = outcome.emitted_at_s[0] if outcome.emitted_at_s else outcome.ended_at_s
        if waited_s(outcome) > pair.longest_step_s(outcome.call.arrived_at_s, first_s):
            return False
        spans.append((outcome.call.arrived_at_s, first_s, outcome.ended_at_s))
    if pair.stock_run.num_preemptions or pair.scenario.max_num_seqs <= FEW:
        return False
    for i, (arrived_s, first_s, _) in enumerate(spans):
        if any(began_s < first_s for began_s, _, _ in spans[i + 1 :]):
            return False
        if sum(began_s <= arrived_s <= ended_s for began_s, _, ended_s in spans) > FEW:
            return False
    return True


def waited_s(outcome: Outcome) -> float:
    """Return how long a request had to wait for its first step to begin."""
    began_s = (at_s for at_s, phase in outcome.phases if phase == "prefill")
    return next(began_s, math.inf) - outcome.call.arrived_at_s


def staying(pair: Pair) -> list[str]:
    """Return the requests whose clients never hang up."""
    return [name for name in pair.names if pair.stock[name].call.abort_at_s is None]


def assert_first_tokens(pair: Pair) -> None:
    """No first token is later than stock's by more than a step and a twentieth.

    Beside a stream with a promised gap it may be: a long prompt is cut so that the stream keeps
    its pace, which stock would not do.
    """
    for name in staying(pair):
        theirs, ours = pair.stock[name], pair.ours[name]
        if is_refused(ours) or has_gaps_beside(pair, name, until_end=False):
            continue  # Whether a refusal may be is another rule's.
        if misses_a_turn(pair, name):
            continue
        arrived_s = theirs.call.arrived_at_s
        theirs_s = theirs.emitted_at_s[0] - arrived_s
        ours_s = ours.emitted_at_s[0] - arrived_s
        step_s = pair.step_around_s(name)
        assert ours_s <= SLACK * theirs_s + step_s, (name, theirs_s, ours_s, step_s)


def misses_a_turn(pair: Pair, name: str) -> bool:
    """Return whether a request, or one served when it comes, has an earlier turn not served.

    That one was refused, or its client left: what it would have left in the cache is not there.
    """
    ours = pair.ours[name]
    at_s = ours.call.arrived_at_s
    beside = [o for o in pair.ours.values() if o.finish_reason in SERVED and is_live(o, at_s)]
    return any(
        before.finish_reason not in SERVED
        and before.call.hash_ids == outcome.call.hash_ids != ()
        and before.call.request_id < outcome.call.request_id
        for outcome in (ours, *beside)
        for before in pair.ours.values()
    )


def has_gaps_beside(pair: Pair, name: str, *, until_end: bool) -> bool:
    """Return whether stock serves a stream with a promised gap beside (the prompt of) a request."""
    outcome = pair.stock[name]
    arrived_s = outcome.call.arrived_at_s
    to_s = outcome.ended_at_s if until_end else outcome.emitted_at_s[0]
    return any(
        other.call.arrived_at_s <= to_s and other.ended_at_s >= arrived_s
        for other in pair.stock.values()
        if other is not outcome and "slo_tbt_ms" in other.call.xargs
    )


def assert_promises_kept(pair: Pair) -> None:
    """Whoever kept its promise on stock keeps it on Headway, but by a hair.

    A hair is what a first token may be later, and for a refusal :data:`GUESS`. Where promised gaps
    meet prompts, stock keeps one promise and Headway may keep another: then no fewer are kept, or
    none of less weight.
    """
    lost: list[str] = []
    won: list[str] = []
    for name in staying(pair):
        theirs, ours = pair.stock[name], pair.ours[name]
        if not theirs.call.xargs or keeps(theirs) == keeps(ours) or misses_a_turn(pair, name):
            continue
        step_s = pair.step_around_s(name)
        if is_refused(ours) and has_no_gaps_by_chance(theirs):
            continue
        if keeps(ours):
            won.append(name)
        elif keeps(theirs, GUESS if is_refused(ours) else SLACK, step_s):
            assert has_gaps_beside(pair, name, until_end=True), (name, theirs, ours)
            lost.append(name)
    assert len(lost) <= len(won) or weight(pair, lost) <= weight(pair, won), (lost, won)


def has_no_gaps_by_chance(outcome: Outcome) -> bool:
    """Return whether a promised gap was kept for want of any: nobody knew of the only token."""
    limit = outcome.call.max_output_tokens or 1
    return "slo_tbt_ms" in outcome.call.xargs and len(outcome.emitted_at_s) == 1 < limit


def num_kept(pair: Pair) -> tuple[int, int]:
    """Return how many promises stock keeps, and how many Headway."""
    names = [name for name in staying(pair) if pair.stock[name].call.xargs]
    return sum(keeps(pair.stock[n]) for n in names), sum(keeps(pair.ours[n]) for n in names)


def weight(pair: Pair, names: Iterable[str]) -> float:
    """Return how much some requests count together."""
    return sum(pair.stock[name].call.xargs.get("slo_weight", 1.0) for name in names)


def keeps(outcome: Outcome, slack: float = 1.0, step_s: float = 0.0) -> bool:
    """Return whether a promise was kept, or would have been *slack* times and a step later."""
    if outcome.finish_reason not in SERVED:
        return False
    at_s, xargs = np.array(outcome.emitted_at_s), outcome.call.xargs
    since_ms = 1000 * (slack * (at_s - outcome.call.arrived_at_s) + step_s - ROUNDING_S)
    gaps_ms = 1000 * (np.diff(at_s) - ROUNDING_S)
    on_pace = np.mean(gaps_ms <= xargs.get("slo_tbt_ms", math.inf)) if len(gaps_ms) else 1.0
    return bool(
        since_ms[0] <= xargs.get("slo_ttft_ms", math.inf)
        and since_ms[-1] <= xargs.get("slo_jct_ms", math.inf)
        and on_pace >= 0.99
    )


# -- (c) nobody has a promise ---------------------------------------------------------------------


def has_promises(pair: Pair) -> bool:
    """Return whether anybody has one."""
    return any(pair.stock[name].call.xargs for name in pair.names)


def has_room(scenario: Scenario) -> bool:
    """Return whether the cache holds every request of the scenario at once."""
    warm = 0
    if scenario.warm:
        warm = 3 * NUM_WARM_UP + max(map(blocks_of, scenario.asks))
    return sum(map(blocks_of, scenario.asks)) + warm <= scenario.num_blocks


def assert_unchanged(pair: Pair) -> None:
    """With room in the cache nothing changes at all: every token comes at the same instant.

    Where prompts share what the same step computes, stock may admit one more in that step
    (``test_same_as_stock.py``), so there the whole lasts as long within a few per cent.
    """
    shares = pair.scenario.caching and any(ask.chat is not None for ask in pair.scenario.asks)
    if shares:
        assert throughput_ratio(pair) >= 1.0 - SHARED_WITHIN
        return
    for name, theirs in pair.stock.items():
        assert list(pair.ours[name].emitted_at_s) == list(theirs.emitted_at_s), name


def throughput_ratio(pair: Pair) -> float:
    """Return output tokens a second from the first arrival to the last token, ours to stock's."""
    began_s = min(pair.stock[name].call.arrived_at_s for name in pair.names)

    def rate(outcomes: Mapping[str, Outcome]) -> float:
        times = [t for name in pair.names for t in outcomes[name].emitted_at_s]
        return len(times) / (max(times) - began_s) if times else 1.0

    return rate(pair.ours) / rate(pair.stock)
