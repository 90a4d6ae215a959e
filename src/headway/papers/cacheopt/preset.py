"""``cacheopt``: CacheOPT as published, as far as it is known to us.

"Mitigating KV Cache Competition to Enhance User Experience in LLM Inference", arXiv 2503.13773.
Its full text was not available: [P] stands in its abstract or introduction, [S] in a third party
that cites its sections, [W] is a weak hint, [I] our inference.

- C1 [W] output lengths are padded by Hoeffding's bound at a confidence ``alpha / (1 + beta *
  arrival rate)``, alpha 0.95 and beta 0.001. Differs [I]: a sliding histogram per class where the
  paper trained heads on the model; the range is that of recent errors.
- C2 [S] a guest runs in an owner's reservation by the pairwise rule, the owner with the least
  left first; [W] the buffer is 8 tokens.
- C3 [P] KV is allocated before it runs out, with a global reserve; [W] 2 steps ahead, 8 blocks.
- C4 [S] victims by promised gap, predicted remaining output, KV held; [I] bucket widths.
- C5 [S] swap beyond a profiled length, else recompute; [I] profiled from the step-time model and
  the link, when the first victim is chosen.
- B [S] §3.3's batching: the critical first with a minimum of prompt and B tokens, funded by
  preemption; the rest by demand and promise, predicted releases counted; [I] B is one block of
  16, a victim must be able to afford it.

Left out, a component becomes what stock vLLM does: C1 the plain median, C2 admission while
blocks are free, C3 blocks found when they are needed, C4 the youngest, C5 recompute, B arrival
order. Prompts are cut to a constant budget [I].
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from headway.errors import UserError
from headway.kit.ledger import KvLedger
from headway.kit.lengths import SlidingHistogram
from headway.kit.options import count_from_0, one_of, positive_s, positive_tokens, share
from headway.kit.parts import Parts
from headway.kit.simple import plain_parts
from headway.papers.cacheopt.batching import MinimumFirst
from headway.papers.cacheopt.c1_lengths import HoeffdingPadding
from headway.papers.cacheopt.c2_book import LendingBook
from headway.papers.cacheopt.c2_lending import Lending, LendingLedger
from headway.papers.cacheopt.c3_ahead import Proactive
from headway.papers.cacheopt.c4_victims import Buckets
from headway.papers.cacheopt.c5_swap import SweetSpot
from headway.papers.cacheopt.critical import Critical, Reserve
from headway.papers.cacheopt.ordering import AsTheyCame, CriticalFirst

COMPONENTS = ("C1", "C2", "C3", "C4", "C5", "B")


def parts(
    components: str = "C1,C2,C3,C4,C5,B",
    alpha: float = 0.95,
    beta: float = 0.001,
    chunk_tokens: int | None = None,
    look_ahead_steps: int = 2,
    reserve_blocks: int = 8,
    buffer_tokens: int = 8,
    sweet_spot_tokens: int | None = None,
    gap_bucket_s: float = 0.05,
    remaining_bucket_tokens: int = 64,
    max_wait_s: float = 300.0,
    urgency: str = "own",
) -> Parts:
    """The paper's components; each can be switched off, as in its ablations.

    Args:
        components: Those switched on, by the names above, separated by commas; may be empty.
        alpha, beta: Of C1's confidence; beta in seconds.
        chunk_tokens: Budget of a step, the engine's when ``None``.
        look_ahead_steps: k of C3.
        reserve_blocks: The global reserve of C3; 0 sets nothing aside.
        buffer_tokens: b of C2.
        sweet_spot_tokens: The length of C5; profiled when ``None``.
        gap_bucket_s, remaining_bucket_tokens: Widths of C4's buckets.
        max_wait_s: Bound on how long a request may wait for its turn.
        urgency: A slack counts its own prompt (``"own"``), or all due before too (``"queue"``).

    Raises:
        UserError: An option is not what it must be.
    """
    on, chunk = _components(components), _or_none("chunk_tokens", chunk_tokens)
    critical = Critical(one_of("urgency", urgency, ("queue", "own")) == "queue", chunk)
    may_pay = critical if "B" in on else None
    count_from_0("reserve_blocks", reserve_blocks)
    book = LendingBook(count_from_0("buffer_tokens", buffer_tokens))
    lending, kept, gap_s = LendingLedger(book), Reserve(), positive_s("gap_bucket_s", gap_bucket_s)
    ledger, lends = (lending, book) if "C2" in on else (KvLedger(), None)
    remaining = positive_tokens("remaining_bucket_tokens", remaining_bucket_tokens)
    lengths, steps = SlidingHistogram(), positive_tokens("look_ahead_steps", look_ahead_steps)
    confidence = share("alpha", alpha), positive_s("beta", beta)
    batcher = MinimumFirst(ledger, critical, kept)
    built: dict[str, dict[str, Any]] = {
        "C1": {"predictor": HoeffdingPadding(lengths, *confidence)},
        "C2": {"gate": Lending(lending, may_pay)},
        "C3": {"funder": Proactive(ledger, critical, kept, reserve_blocks, steps)},
        "C4": {"preemptor": Buckets(lends, may_pay, gap_s, remaining, steps)},
        "C5": {"swap": SweetSpot(_or_none("sweet_spot_tokens", sweet_spot_tokens))},
        "B": {"prioritizer": CriticalFirst(critical), "batcher": batcher},
    }
    preset = replace(
        plain_parts(chunk),
        predictor=lengths,
        prioritizer=AsTheyCame(),
        max_wait_s=positive_s("max_wait_s", max_wait_s),
        heeds_promises=True,
        ledger=ledger,
        shared=(critical, kept),
    )
    return replace(preset, **{field: part for name in on for field, part in built[name].items()})


def _or_none(name: str, value: Any) -> int | None:
    return None if value is None else positive_tokens(name, value)


def _components(text: Any) -> frozenset[str]:
    names = [n.strip() for n in text.split(",") if n.strip()] if isinstance(text, str) else None
    if names is None or not set(names) <= set(COMPONENTS):
        raise UserError(
            f"Option components must be some of {','.join(COMPONENTS)}, not {text!r:.60}."
        )
    return frozenset(names)
