"""How many tokens a step takes: AccelGen's dynamic chunk (arXiv 2503.13737)."""

from __future__ import annotations

import math
from typing import Protocol

from headway.kit.simple import WholePrompts
from headway.kit.tightest import TightestRecent
from headway.latency.model import StepShape
from headway.policy.chunk import Chunker, StepTime
from headway.policy.draft import Draft

SATURATED = 0.95
"""Share of the best tokens a second at which a step counts as saturated. On the roofline of
OPT-13B on an A100 that is 832 tokens; 768 is reported of the paper."""

GRAIN_TOKENS = 64
"""Distance of the sizes tried; finer ones change nothing a GPU would notice."""

REFIND_STEPS = 64
"""The saturating size is looked for again after this many steps: the model is learning."""


KEPT_BACK = 0.02
"""Share of a promise not planned with: model and line err by that much where both are good."""

MISS_RATE = 0.001
"""Share of saturated steps that may outlast T_pf: a stream lives through hundreds of them, and a
mean would be outlasted by every other."""


class Budget(Chunker, Protocol):
    """A chunker that says how many tokens, decodes included, a step may have."""

    cuts: bool
    """Whether a prompt may be cut to fill a step exactly."""

    def tokens(self, draft: Draft, promise_s: float) -> int:
        """Return the tokens of a step whose tightest promise is *promise_s*; at least 1."""

    def longest_s(self, draft: Draft, promise_s: float) -> float:
        """Return the seconds the rule expects such a step to take."""


def saturating_tokens(step_time_s: StepTime, most_tokens: int) -> int:
    """Return the fewest prompt tokens that reach :data:`SATURATED` of the best tokens a second.

    The paper's S_pf. Tokens a second first rise with the step's size, as its fixed cost is
    spread, and fall again when attention within the prompt outgrows that.

    Args:
        step_time_s: Seconds of a step.
        most_tokens: What the engine can compute in one step.
    """
    sizes: list[int] = [*range(GRAIN_TOKENS, most_tokens, GRAIN_TOKENS), most_tokens]
    speeds = [size / step_time_s(StepShape().with_chunk(size, 0)) for size in sizes]
    enough = SATURATED * max(speeds)
    fast = (size for size, speed in zip(sizes, speeds, strict=True) if speed >= enough)
    return min(fast)


class DynamicChunk(Budget):
    """``S_b = S_pf * SLO_min / T_pf``: the promise scales the saturating step.

    The time of a step is taken for a line through the origin and (S_pf, T_pf). It errs on the
    short side when the promise is longer than T_pf and, by what a step costs before its first
    token, on the long side when it is shorter.

    Args:
        tightest: Of the first tokens promised of late.
        with_context: Take T_pf beside the decodes of now and behind the prompt computed so
            far; else of a step on an idle server, as a profile of S_pf would have it.
        exact: Differs from the paper: the most tokens whose own predicted time is within the
            promise, in place of the line's.
    """

    cuts = True

    def __init__(
        self,
        tightest: TightestRecent,
        with_context: bool = True,
        exact: bool = False,
    ) -> None:
        self._tightest = tightest
        self._with_context = with_context
        self._exact = exact
        self._saturating_tokens = 0
        self._found_at_step = -REFIND_STEPS
        self._is_new = True
        self._decodes = StepShape()
        self._prefix_tokens = 0
        self._token_s = 1.0
        self._sizes: dict[float, int] = {}

    def begin(self, draft: Draft) -> None:
        """Forget the last plan."""
        self._is_new = True

    def tokens(self, draft: Draft, promise_s: float) -> int:
        """See :class:`Budget`; never more than the engine's own limit."""
        self._look(draft)
        size = self._sizes.get(promise_s)
        if size is None:
            most, within_s = draft.given.view.max_step_tokens, (1.0 - KEPT_BACK) * promise_s
            if self._exact:
                size = self._most_within(draft, within_s, most)
            else:
                wanted = within_s / self._token_s
                size = most if wanted >= most else int(wanted)
            size = self._sizes[promise_s] = max(size, 1)
        return size

    def longest_s(self, draft: Draft, promise_s: float) -> float:
        """See :class:`Budget`: the promise, or what the engine's limit makes of it."""
        tokens = self.tokens(draft, promise_s)
        return self._step_s(draft, tokens) if self._exact else tokens * self._token_s

    def step_limit_s(self, draft: Draft) -> float:
        """Return the tightest promise the steps have to heed now; ``inf`` without any.

        Gaps that a step of the decodes alone already exceeds are broken whatever is decided.
        """
        decode_s = draft.given.latency.predict_s(draft.shape)
        gaps_s = (gap_s for gap_s in draft.given.live.claim_gaps if gap_s > decode_s)
        return min(next(gaps_s, math.inf), self._tightest.value_s)

    def largest(
        self,
        draft: Draft,
        shape: StepShape,
        prefix: int,
        most: int,
        must_go_on: bool = False,
    ) -> int:
        """Return what the budget leaves beside *shape*."""
        budget = self.tokens(draft, self.step_limit_s(draft))
        return max(min(most, budget - shape.num_tokens), 0)

    def _look(self, draft: Draft) -> None:
        """Find T_pf / S_pf, once a plan."""
        if not self._is_new:
            return
        self._is_new = False
        self._sizes.clear()
        if draft.given.step - self._found_at_step >= REFIND_STEPS:
            self._found_at_step = draft.given.step
            most = draft.given.view.max_step_tokens
            self._saturating_tokens = saturating_tokens(draft.given.latency.predict_s, most)
        if self._with_context:
            self._decodes = draft.shape
            prompts = draft.given.live.prefilling.values()
            self._prefix_tokens = max((r.num_computed_tokens for r in prompts), default=0)
        tokens = max(self._saturating_tokens, self._decodes.num_decodes + 1)
        self._token_s = max(self._step_s(draft, tokens), 1e-9) / tokens

    def _step_s(self, draft: Draft, num_tokens: int) -> float:
        """Return what a step of so many tokens, the decodes of now among them, stays within."""
        chunk = max(num_tokens - self._decodes.num_decodes, 1)
        step_s = draft.given.latency.predict_s(self._decodes.with_chunk(chunk, self._prefix_tokens))
        return step_s * draft.given.latency.margin(True, MISS_RATE)

    def _most_within(self, draft: Draft, within_s: float, most: int) -> int:
        """Return the most tokens of a step that stays within *within_s*; 0 when none does."""
        if self._step_s(draft, most) <= within_s:
            return most
        fits, too_many = 0, most
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self._step_s(draft, middle) <= within_s:
                fits = middle
            else:
                too_many = middle
        return fits


class EngineStep(WholePrompts, Budget):
    """Without A1: the engine's own budget, and prompts computed whole where it can."""

    cuts = False

    def tokens(self, draft: Draft, promise_s: float) -> int:
        """Return the engine's limit."""
        return draft.given.view.max_step_tokens

    def longest_s(self, draft: Draft, promise_s: float) -> float:
        """Return the predicted seconds of a full step."""
        chunk = max(draft.given.view.max_step_tokens - draft.shape.num_decodes, 1)
        return draft.given.latency.predict_s(draft.shape.with_chunk(chunk, 0))
