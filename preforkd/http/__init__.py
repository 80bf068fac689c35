"""HTTP/1.1 without I/O: bytes in, events out; answers in, bytes out. One behavior for all models.

    bytes -> RequestParser -> Request, Data, End or Refusal        parser, chunked; llhttp splits the fields
    Exchange                                                       one request and its answer, over a Transport
    status, header, blocks -> CheckedHead, serialize -> bytes      response

A model reads bytes and feeds a `RequestParser`; for each `Request` it makes an `Exchange` and hands it to the handler;
a `Refusal` it answers with `refusal_bytes` and closes. Nothing in this package knows descriptors, clocks (but for Date)
or WSGI.
"""

from __future__ import annotations

from preforkd.http.errors import BodyError, ClientGone, SpeaksPlainly
from preforkd.http.events import END, Data, End, Event, Refusal, Request
from preforkd.http.exchange import AccessRecord, Exchange, Peer, StoredBody, Transport
from preforkd.http.limits import RequestLimits
from preforkd.http.memory import Memory
from preforkd.http.parser import RequestParser
from preforkd.http.response import BadResponse, CheckedHead, Framing, http_date, phrase, plain_page, refusal_bytes

__all__ = [
    "END",
    "AccessRecord",
    "BadResponse",
    "BodyError",
    "CheckedHead",
    "ClientGone",
    "Data",
    "End",
    "Event",
    "Exchange",
    "Framing",
    "Memory",
    "Peer",
    "Refusal",
    "Request",
    "RequestLimits",
    "RequestParser",
    "SpeaksPlainly",
    "StoredBody",
    "Transport",
    "http_date",
    "phrase",
    "plain_page",
    "refusal_bytes",
]
