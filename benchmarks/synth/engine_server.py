"""An OpenAI-compatible server with a latency. Usage: engine_server.py PORT LATENCY_S.

Answers follow from the prompt. A prompt with REFUSE in it gets HTTP 400. ``/count`` tells how many
completions were asked for, ``/span`` how long they took altogether since it was last asked, and how
long each was answered after it came. An answer is made when its request comes and sent when the
latency is over, not before and as little after as can be: timers of epoll are late by half a
millisecond, so select it is. It speaks as much HTTP as the clients do that are measured, and no
more: a web framework takes .4 ms a request, which for 32 at once is a quarter of the latency
itself.
"""

import asyncio
import hashlib
import json
import selectors
import sys
from typing import Any

ANSWERS = "/v1/chat/completions"


class Server:
    """Counts what it is asked."""

    def __init__(self, latency: float) -> None:
        """Begin at zero."""
        self.latency, self.seen = latency, 0
        self._first: float | None = None
        self._last = self._waited = 0.0
        self._answered = 0

    def begin(self, now: float) -> None:
        """Note that a request has come."""
        self.seen += 1
        self._first = now if self._first is None else self._first

    def end(self, begun: float, now: float) -> None:
        """Note that it is answered."""
        self._last = now
        self._waited += now - begun
        self._answered += 1

    def span(self) -> dict[str, Any]:
        """Return seconds from the first request to the last answer, and start anew."""
        told = {
            "seconds": self._last - (self._first or 0.0),
            "latency": self._waited / max(self._answered, 1),
            "answered": self._answered,
        }
        self._first, self._last, self._waited, self._answered = None, 0.0, 0.0, 0
        return told

    def chat(self, data: bytes) -> tuple[int, dict[str, Any]]:
        """Return status and answer of a request for a completion."""
        body = json.loads(data)
        told = json.dumps(body["messages"])
        if "REFUSE" in told:
            return 400, {"error": {"message": "too long", "type": "invalid_request_error"}}
        mark = hashlib.sha256(told.encode()).hexdigest()
        said = f"In other words: {' '.join(mark[at : at + 5] for at in range(0, 60, 5))}."
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": said},
            "finish_reason": "stop",
        }
        return 200, {
            "id": f"chatcmpl-{mark[:12]}",
            "object": "chat.completion",
            "created": 1,
            "model": body.get("model", "m"),
            "choices": [choice] * (body.get("n") or 1),
            "usage": {"prompt_tokens": 60, "completion_tokens": 20, "total_tokens": 80},
        }


class Connection(asyncio.Protocol):
    """One client's connection, whose requests come one after another."""

    def __init__(self, server: Server) -> None:
        """Begin with nothing read."""
        self._server = server
        self._read = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep where answers go."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self._read += data
        while (end := self._read.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._read[:end]).lower()
            _, told, size = head.partition(b"\r\ncontent-length:")
            whole = end + 4 + (int(size.split(b"\r\n", 1)[0]) if told else 0)
            if len(self._read) < whole:
                return
            body = bytes(self._read[end + 4 : whole])
            del self._read[:whole]
            self._take(head.split(b" ", 2)[1].decode(), body)

    def _take(self, path: str, body: bytes) -> None:
        server = self._server
        if path == ANSWERS:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            server.begin(begun)
            made = _encode(*server.chat(body))

            def answer() -> None:
                self._send(made)
                server.end(begun, loop.time())

            loop.call_at(begun + server.latency, answer)
        elif path == "/count":
            self._send(_encode(200, {"seen": server.seen}))
        elif path == "/span":
            self._send(_encode(200, server.span()))
        elif path == "/v1/models":
            self._send(_encode(200, {"object": "list", "data": [{"id": "m", "object": "model"}]}))
        else:
            self._send(_encode(404, {"error": {"message": f"there is no {path}"}}))

    def _send(self, made: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(made)


def _encode(status: int, value: dict[str, Any]) -> bytes:
    """Return an answer as it is sent."""
    body = json.dumps(value).encode()
    phrase = {200: "OK", 400: "Bad Request", 404: "Not Found"}[status]
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _open_loop() -> asyncio.AbstractEventLoop:
    """Return a loop whose timers are exact: epoll rounds them up to whole milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def main() -> None:
    """Serve until killed."""
    server = Server(float(sys.argv[2]))
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", int(sys.argv[1]))
    await listening.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=_open_loop) as runner:
        runner.run(main())
