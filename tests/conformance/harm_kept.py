"""Loads that once failed the no-harm test, each with the fault it showed."""

from __future__ import annotations

from dataclasses import dataclass

from harm_scenarios import Ask, Features, Scenario

OPEN = "known and not yet mended: the comment before the load says what is wrong"


@dataclass(frozen=True)
class Kept:
    """A reduced scenario.

    Attributes:
        is_light: Whether it is held to the rules of light load; else as many promises as on stock
            must be kept.
        is_open: Its fault is known and not yet mended.
    """

    name: str
    scenario: Scenario
    is_light: bool = True
    is_open: bool = False


KEPT = (
    # One client's TTFT that nobody could keep cut every prompt of the next minute into pieces of 64
    # tokens, on an idle server.
    Kept(
        "steps short for nobody",
        Scenario(
            (Ask(0.0, 7, 5, ttft_ms=3.2), Ask(400.0, 1030, 3), Ask(300.0, 605, 9, ttft_ms=27.87)),
            2000,
            caching=False,
        ),
    ),
    # A stream with a promised gap near a step waited for the stream before it to end, though it
    # was the only one with a promise: an empty server would have been no faster.
    Kept(
        "waits for an empty server",
        Scenario((Ask(55.7, 1227, 20), Ask(40.0, 181, 3, tbt_ms=7.8)), 2000, budget=8192),
    ),
    # It waited for a stream whose gap was five times as long.
    Kept(
        "waits for a patient stream",
        Scenario(
            (
                Ask(886.3, 4871, 120, tbt_ms=32.72),
                Ask(317.0, 4043, 1, ttft_ms=400.0, tbt_ms=8.0),
            ),
            2000,
            caching=False,
            budget=512,
        ),
    ),
    # Refused for a gap between tokens by a server that knew there would be one token.
    Kept(
        "one token has no gaps",
        Scenario(
            (Ask(47.6, 592, 60), Ask(163.9, 241, 1, tbt_ms=0.64)),
            2000,
            overload="refuse",
            caching=False,
        ),
    ),
    # Thirty decodes after the only prompt the model was taken for warm: it was fitted every eighth
    # step, and cut the next prompt into eight pieces by its first guess.
    Kept(
        "one prompt seen",
        Scenario((Ask(0.0, 1999, 33, ttft_ms=21.98), Ask(1920.6, 1564, 1)), 2000, caching=False),
    ),
    # Refused at once for 37 ms and more of work to come beside a stream with a gap so tight that no
    # prompt token fits: it had 5 ms to go, and its own promise was broken by then.
    Kept(
        "refused beside a stream that ends soon",
        Scenario(
            (
                Ask(0.0, 161, 17, ttft_ms=40.43, tbt_ms=8.25, jct_ms=29.0),
                Ask(28.3, 109, 56, ttft_ms=751.55, jct_ms=1814.27),
            ),
            517,
            overload="refuse",
            warm=True,
            budget=8192,
            scale=0.05,
        ),
    ),
    # Two ask about a document that is still read. A server that is not told what is cached
    # meanwhile takes them for too late; so does one that reads on in short steps, and one on which
    # each goes first and reads it for itself.
    Kept(
        "asked while it is read",
        Scenario(
            (
                Ask(0.0, 5882, 1, chat=0),
                Ask(42.0, 5911, 10, ttft_ms=108.46, chat=0),
                Ask(20.0, 5956, 5, ttft_ms=108.46, chat=0),
            ),
            3000,
            budget=512,
        ),
        is_light=False,
    ),
    # The server stood still for ever. A request was preempted while a token of its own was in
    # flight, and all but that one were found in the cache: no tokens to compute stopped the queue.
    Kept(
        "nothing left to compute",
        Scenario(
            (
                Ask(10.0, 20, 3),
                Ask(0.0, 2732, 3, chat=0),
                Ask(2.0, 2775, 1, chat=0),
                Ask(22.0, 2736, 3, chat=0),
            ),
            178,
            budget=8192,
            asynchronous=True,
        ),
        is_light=False,
    ),
    # One claim in all, on an idle server: the price of a step took it for a pressed one, and
    # cut the prompt of that one claim, or of whoever came next, into pieces.
    Kept("cut by its own gap", Scenario((Ask(270.3, 4414, 1, tbt_ms=8.48),), 2000)),
    Kept(
        "cut by another's first token",
        Scenario((Ask(0.0, 50, 1, ttft_ms=8.93), Ask(51.0, 4563, 1)), 2000, budget=8192),
    ),
    Kept(
        "cut by its own first token",
        Scenario((Ask(0.0, 5268, 1, ttft_ms=180.0),), 2000, budget=512),
    ),
    # A stream whose gap no step keeps waited for the one before it to end: it began later, and its
    # gaps were no shorter. (Found with steps mended and the gate for streams not.)
    Kept(
        "waits for nothing",
        Scenario(
            (Ask(860.8, 335, 8), Ask(25.0, 383, 1, tbt_ms=5.09)), 2000, caching=False, scale=20.0
        ),
    ),
    # Steps were kept short for first tokens of others that nobody could keep (0.09 and 10 ms), and
    # a prompt of 1,495 tokens on a very fast machine came two steps later than on stock.
    Kept(
        "short for those who might come",
        Scenario(
            (
                Ask(0.0, 5463, 9, ttft_ms=100.09, chat=2),
                Ask(1501.4, 5524, 40, ttft_ms=31.66, tbt_ms=0.07, chat=2, limit=3),
                Ask(7597.8, 5589, 44, ttft_ms=134.66, jct_ms=4.17, chat=2),
                Ask(769.5, 24, 10, ttft_ms=658.88, chat=1, limit=3),
                Ask(79.1, 86, 41, chat=0, leaves_after_ms=26.7),
                Ask(87.2, 119, 54, ttft_ms=9.91, jct_ms=700.59, chat=1),
                Ask(27.4, 269, 29, chat=1),
                Ask(55.7, 220, 8, jct_ms=119.07, weight=3.0, chat=0),
                Ask(52.4, 1495, 4, ttft_ms=16.46),
            ),
            884,
            budget=2048,
            scale=0.05,
            max_wait_ms=10_000.0,
        ),
    ),
    # The same with nobody waiting: a long prompt beside one stream was cut into pieces for first
    # tokens that might come, whose like nobody can keep beside it.
    Kept(
        "cut for nobody behind it",
        Scenario((Ask(0.0, 130, 25, ttft_ms=15.49), Ask(19.4, 3109, 2)), 2000, budget=512),
    ),
    # The only stream with a promised gap waited for the streams without one to end: theirs was
    # no gap to be kept, and its own is no longer for the wait.
    Kept(
        "alone with its gap",
        Scenario((Ask(0.0, 133, 10), Ask(28.0, 181, 9, tbt_ms=8.25)), 2000, budget=8192),
    ),
    Kept(
        "alone with its gap and its first token",
        Scenario(
            (Ask(0.0, 84, 23, ttft_ms=3.62), Ask(18.1, 878, 3, ttft_ms=98.47, tbt_ms=8.29)),
            2000,
            caching=False,
        ),
    ),
    # Nothing failed here; the line that hears what is cached meanwhile was taken out.
    Kept(
        "two ask while it is read",
        Scenario(
            (
                Ask(0.0, 3525, 1, chat=0),
                Ask(42.0, 3547, 8, ttft_ms=62.84, chat=0),
                Ask(10.0, 3630, 2, ttft_ms=62.84, chat=0),
            ),
            3000,
            warm=True,
            budget=512,
        ),
        is_light=False,
    ),
    # While a grammar was compiled and nothing else was there to do, the wait counted as a step; the
    # longest wait then seemed over for whoever came.
    Kept(
        "a wait for a grammar is no step",
        Scenario(
            (
                Ask(0.0, 929, 8, ttft_ms=10.39, tbt_ms=31.9, chat=2),
                Ask(51.9, 3052, 53, ttft_ms=54.11, tbt_ms=0.65, jct_ms=41.04, limit=3),
                Ask(64.3, 911, 1, ttft_ms=0.2, chat=0),
                Ask(30.6, 924, 7, ttft_ms=0.21, tbt_ms=637.92, chat=0),
                Ask(57.0, 1074, 5, tbt_ms=0.06, weight=3.0, chat=0),
            ),
            3358,
            caching=False,
            max_num_seqs=1,
            budget=512,
            asynchronous=True,
            scale=0.05,
            max_wait_ms=249.2,
            features=Features(seed=4845, grammars=True),
        ),
        is_light=False,
    ),
    # A plan made while a step was in flight had nobody to start, KV being on its way: the wait
    # until the next plan counts as part of the step after it, under async scheduling.
    Kept(
        "a wait planned behind a step in flight is no step",
        Scenario(
            (
                Ask(0.0, 929, 8, ttft_ms=10.39, tbt_ms=31.9, chat=2),
                Ask(51.9, 3052, 53, ttft_ms=54.11, tbt_ms=0.65, jct_ms=41.04, limit=3),
                Ask(1690.9, 747, 48, ttft_ms=33.85, weight=3.0, chat=0, leaves_after_ms=32.3),
                Ask(423.1, 4267, 60, limit=3),
                Ask(240.1, 820, 2, ttft_ms=9.23, tbt_ms=1.59, jct_ms=156.08, weight=3.0, chat=0),
                Ask(27.7, 893, 5, ttft_ms=100.06, tbt_ms=6.7, chat=0),
                Ask(50.0, 975, 23, ttft_ms=5.44, chat=2),
                Ask(543.9, 2066, 1, limit=3),
                Ask(
                    227.2, 1113, 4, ttft_ms=2469.91, tbt_ms=5.11, jct_ms=100.49, weight=3.0, chat=2
                ),
                Ask(61.7, 1160, 48, ttft_ms=0.26, chat=2),
                Ask(64.3, 911, 1, ttft_ms=0.2, chat=0),
                Ask(30.6, 924, 7, ttft_ms=0.21, tbt_ms=637.92, chat=0),
                Ask(31.0, 1025, 4, chat=0, limit=3),
                Ask(57.0, 1074, 5, tbt_ms=0.06, weight=3.0, chat=0),
                Ask(59.7, 67, 8, ttft_ms=3.53, tbt_ms=0.06, jct_ms=14.45, chat=1),
                Ask(35.3, 4623, 19, limit=3),
                Ask(261.4, 1316, 7, ttft_ms=145.28, tbt_ms=0.06, weight=3.0, chat=2),
                Ask(72.6, 3300, 4, jct_ms=9925.2),
                Ask(110.0, 1419, 7, tbt_ms=0.06, chat=2),
                Ask(46.9, 1191, 10, tbt_ms=8.31, weight=3.0, chat=0),
                Ask(131.8, 1536, 8, ttft_ms=169.08, jct_ms=8505.31),
                Ask(84.5, 1272, 4, chat=0),
                Ask(702.7, 167, 1, chat=1),
                Ask(12.2, 1515, 5, ttft_ms=66.72, weight=3.0, chat=2, leaves_after_ms=65.4),
                Ask(50.0, 373, 41, ttft_ms=2.61, tbt_ms=5.09, leaves_after_ms=271.0),
            ),
            3358,
            caching=False,
            max_num_seqs=1,
            budget=512,
            asynchronous=True,
            scale=0.05,
            max_wait_ms=249.2,
            features=Features(seed=50061, connector=True),
        ),
        is_light=False,
    ),
)
