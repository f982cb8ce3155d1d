"""A real HTTP server on loopback that answers as a script says; for tests of endpoints."""

import asyncio
import json
import threading
import time

from aiohttp import web


def completion(text, *, finish_reason="stop", prompt_tokens=5, completion_tokens=3):
    return {
        "choices": [
            {
                "message": {"role": "assistant", "content": text},
                "text": text,
                "finish_reason": finish_reason,
            }
        ],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
    }


class Server:
    """Give each request to ``answer(path, body, headers)``: a dict, or (status, body, headers).

    A body may be bytes; a body of None closes the socket without an answer; a float sleeps first.
    Until ``gathers`` requests were in flight at once, each waits for more, while more come.
    """

    def __init__(self, answer):
        self._answer = answer
        self.requests = []
        self.busy = self.most_busy = self.gathers = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def _run(self):
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()

    async def _start(self):
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]

    async def _handle(self, request):
        body = await request.json() if request.can_read_body else None
        self.requests.append((request.path, body, dict(request.headers), time.monotonic()))
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            while self.most_busy < self.gathers and time.monotonic() - self.requests[-1][3] < 0.5:
                await asyncio.sleep(0.002)
            given = self._answer(request.path.removeprefix("/v1"), body, request.headers)
            status, data, headers, sleep_s = 200, given, {}, 0.0
            if isinstance(given, tuple):
                status, data, *rest = given
                headers = rest[0] if rest else {}
                sleep_s = rest[1] if len(rest) > 1 else 0.0
            await asyncio.sleep(sleep_s)
            if data is None:
                request.transport.close()
                return web.Response()
            if isinstance(data, list):
                return await self._send_events(request, data)
            raw = data if isinstance(data, bytes) else json.dumps(data).encode()
            return web.Response(
                status=status, body=raw, headers=headers, content_type="application/json"
            )
        finally:
            self.busy -= 1

    async def _send_events(self, request, events):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            if event is None:
                request.transport.close()
                return response
            text = event if isinstance(event, str) else json.dumps(event)
            await response.write(f"data: {text}\n\n".encode())
        await response.write_eof()
        return response
