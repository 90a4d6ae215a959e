"""What waits for one reader of the channel, and the socket it leaves by.

The kernel queues some ten datagrams for a reader and refuses the next. So:

- Stories wait here, up to a bound, and leave together behind the next snapshot.
- A reader that has not read what it was sent is passed over: its stories wait on, its snapshot is
  superseded by the next. However long it sleeps, no more than one tell fills its queue, and
- the last snapshot before the engine falls idle, which nothing would supersede, finds room: it is
  written to everybody, read or unread, with the oldest stories in the same datagram.

Rejected for that last one: a timer or a thread, which do not belong in the scheduler's process;
and trying again at the next plan, which follows the last token at once, or not before the next
request.
"""

from __future__ import annotations

import fcntl
import socket
import termios
from collections import deque

MAX_STORIES_BYTES = 60_000
"""Of stories in one datagram: some fifty."""

MAX_WAITING_BYTES = 1_000_000
"""Of stories that wait for one reader: more than the 512 it remembers. The oldest give way."""

MAX_DATAGRAMS = 6
"""Of stories behind one snapshot: half of the queue stays free for the last snapshot."""

SEND_BUFFER_BYTES = 1 << 20
"""Asked of the kernel for what is unread; the 400 kB that it gives by default are enough."""

_ALL_READ = bytes(4)


class Mailbox:
    """One reader as the sender knows it.

    Raises:
        OSError: Nobody listens at *path*.
    """

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._stories: deque[bytes] = deque()
        self._waiting_bytes = 0

    def keep(self, story: bytes) -> int:
        """Let a story of at most :data:`MAX_STORIES_BYTES` wait; return how many gave way."""
        self._stories.append(story)
        self._waiting_bytes += len(story)
        num_lost = 0
        while self._waiting_bytes > MAX_WAITING_BYTES:
            self._waiting_bytes -= len(self._stories.popleft())
            num_lost += 1
        return num_lost

    def try_write(self, message: bytes, *, is_last: bool = False) -> bool:
        """Write *message* and the stories that wait; return whether *message* was taken.

        Args:
            is_last: None may follow for long: write it though another one is unread.

        Raises:
            ConnectionError: The reader has gone.
        """
        if not self._has_read():
            return is_last and (self._try_send_with_stories(message) or self._try_send(message))
        if not self._try_send(message):
            return False
        for _ in range(MAX_DATAGRAMS):
            if not self._try_send_with_stories():
                break
        return True

    def _try_send_with_stories(self, *message: bytes) -> bool:
        """Write the oldest stories, behind *message* where there is one, as one datagram."""
        together = self._oldest()
        if not together or not self._try_send(b"[" + b",".join((*message, *together)) + b"]"):
            return False
        for story in together:
            self._stories.popleft()
            self._waiting_bytes -= len(story)
        return True

    def _has_read(self) -> bool:
        """Return whether the reader has read all it was sent."""
        try:
            return fcntl.ioctl(self._socket, termios.TIOCOUTQ, _ALL_READ) == _ALL_READ
        except OSError:
            return True  # A kernel that cannot tell: a full queue will.

    def _oldest(self) -> list[bytes]:
        """Return the stories that go into the next datagram."""
        together: list[bytes] = []
        num_bytes = 1
        for story in self._stories:
            num_bytes += len(story) + 1
            if num_bytes > MAX_STORIES_BYTES:
                break
            together.append(story)
        return together

    def _try_send(self, data: bytes) -> bool:
        try:
            self._socket.send(data)
        except ConnectionError:
            raise
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
