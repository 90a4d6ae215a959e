"""How many tokens a stream gains in a step: more than one where drafts are accepted.

Speculative decoding (Leviathan et al., arXiv 2211.17192) verifies several drafted tokens in one
step. How many turn out right depends on what is generated, so it is learned by class.
"""

from __future__ import annotations

from collections.abc import Mapping

from headway.policy.recent import NEWEST_WEIGHT
from headway.request import Request


class AcceptedTokens:
    """Tokens a step by class; 1 until a step has shown more."""

    def __init__(self) -> None:
        self._tokens: dict[str, float] = {}

    @property
    def is_used(self) -> bool:
        """Whether any step has given a stream more than one token."""
        return bool(self._tokens)

    def of(self, class_name: str) -> float:
        """Return the tokens that a stream of this class gains in a step, at least 1."""
        return self._tokens.get(class_name, 1.0)

    def learn(self, num_new_tokens: Mapping[str, int], decoding: Mapping[str, Request]) -> None:
        """Take in what the streams gained in a step, and tell each what to expect."""
        for request_id, num_tokens in num_new_tokens.items():
            request = decoding.get(request_id)
            if request is None:
                continue
            name = request.slo.class_name
            known = self._tokens.get(name, 1.0)
            request.tokens_a_step = self._tokens[name] = known + NEWEST_WEIGHT * (
                num_tokens - known
            )
