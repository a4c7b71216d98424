"""The two ways of doing it: calls and streams over httpx, blocking and on an event loop, side by side.

The two classes do the same in the same order. What to send and when to give up, neither of them decides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import IO, TypeVar

import httpx

from kernelpool.client.calls import Answer, Call, conclude
from kernelpool.client.connection import Connection, upload_headers
from kernelpool.client.errors import ClientError, UnexpectedAnswer, error_of
from kernelpool.client.streams import Stream, is_wanted
from kernelpool.client.transfers import CHUNK, Source, bytes_left

T = TypeVar("T")

_FAULTS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)


class Transport:
    """Blocking. Several threads may share one."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._http = httpx.Client(mounts=connection.mounts(), **connection.options())

    def close(self) -> None:
        self._http.close()

    def send(self, call: Call[T], source: Source | None = None) -> T:
        """Raises `ClientError` when sending it again is no use, or not allowed."""
        for failures in count(1):
            try:
                answer = self._exchange(call) if source is None else self._upload(call, source)
                return conclude(call, answer)
            except ClientError as error:
                pause = self.connection.pause(error, failures, repeatable=call.repeatable, source=source)
            time.sleep(pause)
        raise AssertionError  # count() does not end

    def follow(self, stream: Stream[T]) -> Generator[T, None, None]:
        """What the stream makes of its answers, over as many connections as it takes."""
        failures = 0
        while True:
            try:
                call = stream.call()
                with self._opened(call) as response:
                    if not is_wanted(call, response.status_code, response.headers.get("Content-Type", "")):
                        raise error_of(response.status_code, response.headers, self._read(response))
                    for chunk in response.iter_raw():
                        failures = 0
                        yield from stream.receive(chunk)
                return stream.end()
            except ClientError as error:
                if stream.is_done:
                    return None
                failures += 1
                pause = self.connection.pause(error, failures, repeatable=stream.repeatable)
            time.sleep(pause)

    def _exchange(self, call: Call[T], body: Iterator[bytes] | None = None, size: int | None = None) -> Answer:
        with self._opened(call, body, size) as response:
            return Answer(response.status_code, response.headers, self._read(response))

    def _upload(self, call: Call[T], source: Source) -> Answer:
        file = source.open()
        try:
            return self._exchange(call, _pieces(file), bytes_left(file))
        finally:
            source.close(file)

    @contextmanager
    def _opened(
        self, call: Call[T], body: Iterator[bytes] | None = None, size: int | None = None
    ) -> Iterator[httpx.Response]:
        options = self.connection.request(call, {} if body is None else upload_headers(size))
        try:
            request = self._http.build_request(content=call.content if body is None else body, **options)
            response = self._http.send(request, stream=True)
            try:
                yield response
            finally:
                response.close()
        except _FAULTS as error:
            raise self.connection.error_of(error) from error

    def _read(self, response: httpx.Response) -> bytes:
        content = bytearray()
        for chunk in response.iter_raw():
            content += chunk
            _check_size(content, self.connection.max_answer)
        return bytes(content)


class AsyncTransport:
    """On an event loop of asyncio, which files never block."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._http = httpx.AsyncClient(mounts=connection.mounts(), **connection.options())

    async def aclose(self) -> None:
        await self._http.aclose()

    async def send(self, call: Call[T], source: Source | None = None) -> T:
        """Raises `ClientError` when sending it again is no use, or not allowed."""
        for failures in count(1):
            try:
                answer = await (self._exchange(call) if source is None else self._upload(call, source))
                return conclude(call, answer)
            except ClientError as error:
                pause = self.connection.pause(error, failures, repeatable=call.repeatable, source=source)
            await asyncio.sleep(pause)
        raise AssertionError  # count() does not end

    async def follow(self, stream: Stream[T]) -> AsyncGenerator[T, None]:
        """What the stream makes of its answers, over as many connections as it takes."""
        failures = 0
        while True:
            try:
                call = stream.call()
                async with self._opened(call) as response:
                    if not is_wanted(call, response.status_code, response.headers.get("Content-Type", "")):
                        raise error_of(response.status_code, response.headers, await self._read(response))
                    async for chunk in response.aiter_raw():
                        failures = 0
                        for item in stream.receive(chunk):
                            yield item
                stream.end()
                return
            except ClientError as error:
                if stream.is_done:
                    return
                failures += 1
                pause = self.connection.pause(error, failures, repeatable=stream.repeatable)
            await asyncio.sleep(pause)

    async def _exchange(
        self, call: Call[T], body: AsyncIterator[bytes] | None = None, size: int | None = None
    ) -> Answer:
        async with self._opened(call, body, size) as response:
            return Answer(response.status_code, response.headers, await self._read(response))

    async def _upload(self, call: Call[T], source: Source) -> Answer:
        file = await asyncio.to_thread(source.open)
        try:
            return await self._exchange(call, _apieces(file), await asyncio.to_thread(bytes_left, file))
        finally:
            await asyncio.to_thread(source.close, file)

    @asynccontextmanager
    async def _opened(
        self, call: Call[T], body: AsyncIterator[bytes] | None = None, size: int | None = None
    ) -> AsyncIterator[httpx.Response]:
        options = self.connection.request(call, {} if body is None else upload_headers(size))
        try:
            request = self._http.build_request(content=call.content if body is None else body, **options)
            response = await self._http.send(request, stream=True)
            try:
                yield response
            finally:
                await response.aclose()
        except _FAULTS as error:
            raise self.connection.error_of(error) from error

    async def _read(self, response: httpx.Response) -> bytes:
        content = bytearray()
        async for chunk in response.aiter_raw():
            content += chunk
            _check_size(content, self.connection.max_answer)
        return bytes(content)


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(CHUNK):
        yield piece


async def _apieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(file.read, CHUNK):
        yield piece


def _check_size(content: bytearray, limit: int) -> None:
    if len(content) > limit:
        raise UnexpectedAnswer(
            f"the answer is larger than {limit} bytes", remedy="Make max_answer of the client larger."
        )
