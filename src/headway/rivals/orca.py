"""``orca``: iteration-level scheduling with the worst case reserved.

ORCA (Yu et al., OSDI 2022, §3.2, §4.2): first come, first served; a request starts when the
slots of *everybody's* prompt and ``max_tokens`` fit, so nobody is ever evicted; its prompt is
computed in one iteration beside the others' tokens. Differs: slots are paged blocks; a prompt
longer than an engine's step is cut; a request whose worst case exceeds the whole cache runs
alone instead of not at all.
"""

from __future__ import annotations

from dataclasses import replace

from headway.kit.parts import Parts
from headway.kit.simple import WholePrompts, plain_parts
from headway.rivals.reserved import Reserved


def parts() -> Parts:
    """Whole prompts, and a start only when the longest possible output fits; no options."""
    return replace(plain_parts(), chunker=WholePrompts(), gate=Reserved())
