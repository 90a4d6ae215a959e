"""What a stream of server-sent events says: its chunks, and the tokens in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from headway.bench.words import in_one_line, message_in
from headway.errors import HeadwayError

MAX_EVENT_BYTES = 2**26
"""64 MiB: the ids of a prompt of nine million tokens fit; longer is no event but a flood."""

NO_TOKENS = frozenset({"role", "name"})
"""Fields of a delta that say who speaks; whatever else is there is part of the answer."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

CountedBy = Literal["ids", "usage", "chunks"]
"""The server's token ids; its usage, spread over the chunks; or one token a chunk."""


class BadStream(HeadwayError):
    """The server said that it failed, or sent what is no stream of chat chunks."""


class Choice(msgspec.Struct):
    """One answer's part of a chunk."""

    delta: dict[str, Any] | None = None
    token_ids: list[Any] | None = None
    finish_reason: Any = None


class ChatChunk(msgspec.Struct):
    """One event of a streamed chat completion; what is not read here may be anything."""

    choices: list[Choice] | None = None
    usage: Any = None
    error: Any = None
    prompt_token_ids: list[Any] | None = None


_decoder = msgspec.json.Decoder(ChatChunk)


def chunk_of(data: bytes) -> ChatChunk:
    """Return the chunk that the data of one event is.

    Raises:
        BadStream: It is not JSON, or JSON of another shape.
    """
    try:
        return _decoder.decode(data)
    except (ValueError, RecursionError) as error:  # msgspec's own are ValueErrors; wrong UTF-8 too.
        shown = in_one_line(data[:80].decode("utf-8", "replace"))
        raise BadStream(f"not a chat chunk ({error}): {shown}") from None


class Lines:
    """Cuts what comes over the wire into the data of events.

    Each line is taken for an event: chat chunks are one line on every server, and some leave out
    the empty line that should follow.
    """

    def __init__(self) -> None:
        self._begun = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the data of every event that *data* completes.

        Raises:
            BadStream: A line is longer than :data:`MAX_EVENT_BYTES`.
        """
        for part in data.splitlines(keepends=True):
            self._begun += part
            if len(self._begun) > MAX_EVENT_BYTES:
                raise BadStream(f"a line of more than {MAX_EVENT_BYTES // 2**20} MiB")
            if part.endswith((b"\n", b"\r")):
                yield from self.end()

    def end(self) -> Iterator[bytes]:
        """Yield the data of the last line, where the stream ended without ending it."""
        line = bytes(self._begun).removeprefix(_BYTE_ORDER_MARK)
        self._begun.clear()
        data = line[5:].strip() if line.startswith(b"data:") else b""
        if data:
            yield data


@dataclass(slots=True)
class Answer:
    """What has come back of one request so far.

    Attributes:
        max_tokens: What was asked for at most; a usage beyond it is not believed.
        emitted_at_s: When each token came. Tokens of one chunk share its time.
        num_prompt_tokens: The server's own count, if it told.
        num_chunks: Events so far, those without tokens included.
    """

    max_tokens: int
    emitted_at_s: list[float] = field(default_factory=list)
    num_prompt_tokens: int | None = None
    num_chunks: int = 0
    finish_reason: Any = None
    counted_by: CountedBy = "chunks"
    _num_settled: int = 0
    _shows_reasoning: bool = False

    def take(self, chunk: ChatChunk, now_s: float) -> None:
        """Count the tokens of one chunk that came at *now_s*.

        Token ids are exact. Of other servers each chunk that adds to the answer is a token, until
        the usage tells how many the chunks since the last usage had.

        Raises:
            BadStream: The chunk is an error.
        """
        self.num_chunks += 1
        if chunk.error:
            raise BadStream(message_in(chunk.error))
        if chunk.prompt_token_ids:
            self.num_prompt_tokens = len(chunk.prompt_token_ids)
        for choice in chunk.choices or ():
            if choice.token_ids is not None:
                self.counted_by = "ids"
                self.emitted_at_s.extend([now_s] * len(choice.token_ids))
            elif self._adds(choice.delta or {}):
                self.emitted_at_s.append(now_s)
            self.finish_reason = choice.finish_reason or self.finish_reason
        if isinstance(chunk.usage, dict):
            self._settle(chunk.usage, [now_s] if chunk.choices else [])

    def _adds(self, delta: dict[str, Any]) -> bool:
        """Whether *delta* has a part of the answer, under whatever name."""
        names = [name for name, value in delta.items() if value and name not in NO_TOKENS]
        self._shows_reasoning |= any(name.startswith("reasoning") for name in names)
        return bool(names)

    def _settle(self, usage: dict[str, Any], this_chunk_s: list[float]) -> None:
        """Spread the tokens of *usage* over the chunks since the last one.

        Chunks are tokens where the usage has fewer, or more than were asked for. Tokens that no
        chunk showed (an end of text) came with this one, or with the last if this has no choices.
        """
        self.num_prompt_tokens = self.num_prompt_tokens or _count(usage.get("prompt_tokens"))
        total = _count(usage.get("completion_tokens"))
        if total is None or self.counted_by == "ids":
            return
        if not self._shows_reasoning:
            details = usage.get("completion_tokens_details")
            hidden = details.get("reasoning_tokens") if isinstance(details, dict) else None
            total -= _count(hidden) or 0
        if len(self.emitted_at_s) <= total <= self.max_tokens:
            chunks_s = self.emitted_at_s[self._num_settled :]
            places_s = chunks_s or this_chunk_s or self.emitted_at_s[-1:]
            num_tokens = total - self._num_settled
            self.emitted_at_s[self._num_settled :] = _spread(places_s, num_tokens)
            self._num_settled = len(self.emitted_at_s)
            self.counted_by = "usage"


def _spread(chunks_s: list[float], num_tokens: int) -> list[float]:
    """Return *num_tokens* instants, as evenly as can be over *chunks_s*, what is over at the end.

    The list is empty where there is no chunk.
    """
    num_chunks = len(chunks_s)
    return [
        at_s
        for index, at_s in enumerate(chunks_s)
        for _ in range((index + 1) * num_tokens // num_chunks - index * num_tokens // num_chunks)
    ]


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else None
