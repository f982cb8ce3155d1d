"""Nothing but requests: what a client that does no work reaches. Usage: PORT COUNT CONCURRENCY."""

import asyncio
import json
import sys
import time

import aiohttp


async def ask(port: int, count: int, concurrency: int) -> float:
    """Return the seconds for so many requests."""
    left = iter(range(count))
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session:

        async def work() -> None:
            for number in left:
                body = {"messages": [{"role": "user", "content": f"{number} " + "word " * 60}]}
                async with session.post(url, json=body) as answer:
                    await answer.read()

        begun = time.perf_counter()
        await asyncio.gather(*[work() for _ in range(concurrency)])
        return time.perf_counter() - begun


if __name__ == "__main__":
    port, count, concurrency = map(int, sys.argv[1:])
    print(json.dumps({"seconds": asyncio.run(ask(port, count, concurrency))}))
