"""How many chunks of an answer the daemon may send ahead of its reader."""

from dataclasses import dataclass, replace

from teengined.protocol.messages import Generate, Grant, TokenChunk

__all__ = ["CREDITS", "Credits", "with_credits"]

# Ahead of a reader who does something else for a moment: a second or two of a fast answer. What comes later waits in
# the daemon, joined into fewer chunks.
CREDITS = 64


def with_credits(request: Generate) -> Generate:
    """Return the request with the credits that these clients keep up; a caller may have chosen others."""
    return request if request.credits else replace(request, credits=CREDITS)


@dataclass(slots=True)
class Credits:
    """Counts what the caller has taken, and grants as much again in halves."""

    total: int
    _num_taken: int = 0

    def take(self, chunk: TokenChunk) -> Grant | None:
        """Note that the caller is done with a chunk; return the grant to send, if it is time for one."""
        self._num_taken += 1
        if self._num_taken < max(1, self.total // 2):
            return None
        grant = Grant(request_id=chunk.request_id, chunks=self._num_taken)
        self._num_taken = 0
        return grant
