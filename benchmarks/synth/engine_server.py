"""An OpenAI-compatible server with a latency. Usage: engine_server.py PORT LATENCY_S.

Answers follow from the prompt. A prompt with REFUSE in it gets HTTP 400. ``/count`` tells how many
completions were asked for.
"""

import asyncio
import hashlib
import json
import sys

from aiohttp import web


class Server:
    """Counts what it is asked."""

    def __init__(self, latency: float) -> None:
        """Begin at zero."""
        self.latency, self.seen = latency, 0

    async def chat(self, request: web.Request) -> web.Response:
        """Answer after the latency."""
        self.seen += 1
        body = await request.json()
        told = json.dumps(body["messages"])
        await asyncio.sleep(self.latency)
        if "REFUSE" in told:
            error = {"message": "the context is too long", "type": "invalid_request_error"}
            return web.json_response({"error": error}, status=400)
        mark = hashlib.sha256(told.encode()).hexdigest()
        said = f"In other words: {' '.join(mark[at : at + 5] for at in range(0, 60, 5))}."
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": said},
            "finish_reason": "stop",
        }
        usage = {"prompt_tokens": 60, "completion_tokens": 20, "total_tokens": 80}
        return web.json_response(
            {
                "id": f"chatcmpl-{mark[:12]}",
                "object": "chat.completion",
                "created": 1,
                "model": body.get("model", "m"),
                "choices": [choice] * (body.get("n") or 1),
                "usage": usage,
            }
        )

    async def count(self, request: web.Request) -> web.Response:
        """Tell how many completions were asked for."""
        return web.json_response({"seen": self.seen})

    async def models(self, request: web.Request) -> web.Response:
        """Tell the one model there is."""
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})


def main() -> None:
    """Serve until killed."""
    server = Server(float(sys.argv[2]))
    app = web.Application()
    app.add_routes(
        [
            web.post("/v1/chat/completions", server.chat),
            web.get("/v1/models", server.models),
            web.get("/count", server.count),
        ]
    )
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)


if __name__ == "__main__":
    main()
