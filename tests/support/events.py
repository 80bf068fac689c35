"""What the request parser makes of bytes that come in pieces."""

from __future__ import annotations

from collections.abc import Iterable

from preforkd.http import Data, Event, Memory, RequestLimits, RequestParser

#: Small ones, so that tests reach them with few bytes.
LIMITS = RequestLimits(line=200, header=600, fields=10, body=1000)


def events(pieces: Iterable[bytes], limits: RequestLimits = LIMITS, memory: Memory | None = None) -> list[Event]:
    """All events of the pieces, the data between two other events put together; what is kept is bounded meanwhile."""
    parser = RequestParser(limits, b"", memory)
    found: list[Event] = []
    for piece in pieces:
        parser.feed(piece)
        while (event := parser.next_event()) is not None:
            if isinstance(event, Data) and found and isinstance(found[-1], Data):
                found[-1] = Data(found[-1].data + event.data)
            else:
                found.append(event)
        # A head, or a line of a chunked body that is still incomplete: never more than the largest of them.
        assert len(parser.unread) <= limits.line + limits.header + 1024 + 4
    return found
