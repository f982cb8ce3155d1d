"""Streaming clients in a process of their own. Usage: load_clients.py PORT MODEL CLIENTS SECONDS.

Each asks again as soon as its answer is whole. Prints one JSON object: pieces of text that came in
the time, and of every client its answers, its errors and its longest time without a piece.
"""

import asyncio
import json
import sys
import time

from benchmarks.serve.asked import QUESTION, THINGS, TOKENS

_GRACE_S, _APART_S = 1.0, 0.02


class Client:
    """One client with one connection at a time, and as little work as can be."""

    def __init__(self, port: int, model: str, number: int, end: float) -> None:
        """Know whom to ask, and until when."""
        self.port, self.model, self.number, self.end = port, model, number, end
        self.answers, self.pieces, self.longest_s = 0, 0, 0.0
        self.errors: list[str] = []

    async def run(self) -> None:
        """Ask until the time is over."""
        turn = self.number
        await asyncio.sleep(self.number * _APART_S)
        while time.monotonic() < self.end:
            try:
                await self.ask(QUESTION.format(THINGS[turn % len(THINGS)]))
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                self.errors.append(repr(error)[:200])
                await asyncio.sleep(0.5)
            turn += 1

    async def ask(self, question: str) -> None:
        """Ask once, and count the pieces of the answer that come in time."""
        body = json.dumps(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": TOKENS,
                "stream": True,
            }
        ).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(head.encode() + body)
            status = await reader.readline()
            if b" 200 " not in status:
                raise ValueError(f"{status!r} {(await reader.read(2000))!r}")
            last, is_whole = time.monotonic(), False
            while line := await reader.readline():
                if not line.startswith(b"data: "):
                    continue
                now = time.monotonic()
                self.longest_s, last = max(self.longest_s, now - last), now
                if b'"delta": {"content"' in line:
                    self.pieces += now < self.end
                elif line.startswith(b'data: {"error"'):
                    raise ValueError(line.decode()[:200])
                is_whole = is_whole or line.startswith(b"data: [DONE]")
            if not is_whole:
                raise ValueError("the stream broke off")
            self.answers += 1
        finally:
            writer.close()


async def main() -> None:
    """Run all clients and print what they met."""
    port, model, clients, seconds = sys.argv[1:]
    end = time.monotonic() + float(seconds)
    all_of_them = [Client(int(port), model, number, end) for number in range(int(clients))]
    tasks = [asyncio.create_task(client.run()) for client in all_of_them]
    await asyncio.wait(tasks, timeout=float(seconds) + _GRACE_S)
    for task in tasks:  # who waits still when the time is over leaves
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    told = {
        "pieces": sum(client.pieces for client in all_of_them),
        "answers": [client.answers for client in all_of_them],
        "errors": [error for client in all_of_them for error in client.errors],
        "longest_s": max(client.longest_s for client in all_of_them),
    }
    print(json.dumps(told))


asyncio.run(main())
