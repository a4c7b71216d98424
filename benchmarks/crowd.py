"""A crowd of slow clients: connections that say a byte now and then and never finish what they say."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import threading
from collections.abc import Iterator

from benchmarks.rest import API, TOKEN

HEAD = b"POST /pools/python/executions?" + API.encode() + b"&identifier=crowd HTTP/1.1\r\nHost: localhost\r\n"
BODY = (
    HEAD
    + f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n".encode()
)
PAUSE = 1.0


@contextlib.contextmanager
def slow_crowd(port: int, size: int) -> Iterator[None]:
    """Half of them never finish their head, half never their body. One that is closed comes back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, size + 500)), hard))
    loop = asyncio.new_event_loop()
    full, stop = threading.Event(), asyncio.Event()

    async def crowd() -> None:
        here: set[int] = set()

        async def one(number: int) -> None:
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    here.add(number)
                    if len(here) == size:
                        full.set()
                    writer.write(HEAD[:40] if number % 2 else BODY)
                    with contextlib.closing(writer):
                        while True:
                            await asyncio.sleep(PAUSE)
                            writer.write(b"x")
                            await writer.drain()
                await asyncio.sleep(PAUSE)

        tasks = [asyncio.create_task(one(number)) for number in range(size)]
        await stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(crowd(),))
    thread.start()
    try:
        if not full.wait(60):
            raise RuntimeError(f"fewer than {size} connections were taken")
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
