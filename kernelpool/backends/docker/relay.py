"""Carries many connections over one pair of pipes, from a gateway elsewhere to a port here. Standard library only.

The gateway has it run beside the agent, as `python -I -S -c <this text> <port>`, and is what reads and writes its
pipes. Either side sends frames: a head (kind, connection, length), then as many bytes.

    OPEN    gateway   a new connection; what it is called is never used again
    OPENED  relay     the agent has taken it
    DATA    both      never more than the other side has room for, at first WINDOW
    ROOM    both      so many bytes have gone on: there is room for them again
    END     both      no more DATA of this side; when both have said so, the connection is over
    GONE    both      it broke, or nobody takes it
    PING    both      the relay sends it back: it lives, and so does all between

It runs as another user than the code beside it, which so can neither stop it nor read what passes. One thread; it holds
up to WINDOW a connection, and when the gateway reads nothing, it waits.
"""

import errno
import os
import selectors
import socket
import struct
import sys
import time

OPEN, OPENED, DATA, ROOM, END, GONE, PING = range(1, 8)
HEAD = struct.Struct(">BIH")
COUNT = struct.Struct(">I")
CHUNK = 16 << 10
WINDOW = 128 << 10
SILENCE = 60.0
"""Seconds. A gateway pings far more often."""


class Connection:
    def __init__(self, id: int, sock: socket.socket) -> None:
        self.id = id
        self.sock = sock
        self.connecting = True
        self.unsent = bytearray()
        self.room = WINDOW
        self.is_ended = False
        self.is_shut = False
        self.is_read_out = False

    def wanted(self) -> int:
        if self.connecting:
            return selectors.EVENT_WRITE
        reads = not self.is_read_out and self.room > 0
        return (selectors.EVENT_READ if reads else 0) | (selectors.EVENT_WRITE if self.unsent else 0)


class Relay:
    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, Connection] = {}
        self._heard = bytearray()
        self._heard_at = time.monotonic()

    def run(self) -> None:
        """Until the gateway is gone, or says nothing for so long that it must be."""
        self._selector.register(0, selectors.EVENT_READ)
        while time.monotonic() - self._heard_at < SILENCE:
            for key, mask in self._selector.select(SILENCE):
                if key.data is not None:
                    self._move(key.data, mask)
                elif not self._hear():
                    return

    # --- the gateway

    def _hear(self) -> bool:
        data = os.read(0, 64 << 10)
        self._heard_at = time.monotonic()
        self._heard += data
        while len(self._heard) >= HEAD.size:
            kind, id, length = HEAD.unpack_from(self._heard)
            if len(self._heard) < HEAD.size + length:
                break
            payload = bytes(self._heard[HEAD.size : HEAD.size + length])
            del self._heard[: HEAD.size + length]
            self._obey(kind, id, payload)
        return bool(data)

    def _obey(self, kind: int, id: int, payload: bytes) -> None:
        if kind == PING:
            self._say(PING, 0)
        elif kind == OPEN:
            self._open(id)
        elif (connection := self._connections.get(id)) is None:
            pass  # it broke while this was on its way
        elif kind == DATA:
            connection.unsent += payload
            self._watch(connection)
        elif kind == ROOM:
            connection.room += COUNT.unpack(payload)[0]
            self._watch(connection)
        elif kind == END:
            connection.is_ended = True
            self._guard(connection, 0)
        elif kind == GONE:
            self._forget(connection)

    def _say(self, kind: int, id: int, payload: bytes = b"") -> None:
        left = memoryview(HEAD.pack(kind, id, len(payload)) + payload)
        while left:
            left = left[os.write(1, left) :]

    # --- the agent

    def _open(self, id: int) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sock.connect_ex(("127.0.0.1", self._port)) not in (0, errno.EINPROGRESS):
            sock.close()
            self._say(GONE, id)
            return
        connection = self._connections[id] = Connection(id, sock)
        self._watch(connection)

    def _move(self, connection: Connection, mask: int) -> None:
        if self._connections.get(connection.id) is connection:
            self._guard(connection, mask)

    def _guard(self, connection: Connection, mask: int) -> None:
        try:
            self._act(connection, mask)
        except BlockingIOError:
            pass
        except OSError:
            self._say(GONE, connection.id)
            self._forget(connection)
            return
        if connection.is_shut and connection.is_read_out:
            self._forget(connection)
        else:
            self._watch(connection)

    def _act(self, connection: Connection, mask: int) -> None:
        sock = connection.sock
        if connection.connecting:
            if not mask:
                return
            if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, "connect")
            connection.connecting = False
            self._say(OPENED, connection.id)
        if mask & selectors.EVENT_WRITE and connection.unsent:
            count = sock.send(connection.unsent)
            del connection.unsent[:count]
            self._say(ROOM, connection.id, COUNT.pack(count))
        if connection.is_ended and not connection.unsent and not connection.is_shut:
            sock.shutdown(socket.SHUT_WR)
            connection.is_shut = True
        if mask & selectors.EVENT_READ and connection.room:
            data = sock.recv(min(CHUNK, connection.room))
            connection.room -= len(data)
            connection.is_read_out = not data
            self._say(DATA if data else END, connection.id, data)

    def _watch(self, connection: Connection) -> None:
        wanted = connection.wanted()
        watched = self._selector.get_map().get(connection.sock.fileno())
        if not wanted and watched:
            self._selector.unregister(connection.sock)
        elif wanted and not watched:
            self._selector.register(connection.sock, wanted, connection)
        elif watched and watched.events != wanted:
            self._selector.modify(connection.sock, wanted, connection)

    def _forget(self, connection: Connection) -> None:
        del self._connections[connection.id]
        if self._selector.get_map().get(connection.sock.fileno()):
            self._selector.unregister(connection.sock)
        connection.sock.close()


if __name__ == "__main__":
    Relay(int(sys.argv[1])).run()
