"""Holds the network namespace of a custom container, and relays connections across its edge. Standard library only.

`holder.py <target port> [--proxy]`, in a container of ours that shares the namespace with the other one, and no more:

    app.sock     each connection becomes one to 127.0.0.1:<target port>
    knock.sock   each connection reads one byte if the target port takes connections, and is closed
    --proxy      each connection to 127.0.0.1:3128 becomes one to egress.sock
    --filter=    <number of answers>:<batch in hexadecimal>, the first that the kernel takes is put before the network;
                 then all rights are given up. The port `-` is for a container that is reached by itself: then
                 net.sock says that all is done, and there is no other

What it passes on it neither reads nor keeps: a connection has room for one chunk each way, and whoever sends faster
than the other side takes waits. One thread, and as little memory as an interpreter needs, for there is one a sandbox.
"""

import errno
import os
import select
import selectors
import signal
import socket
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = "/run/kp"
PROXY_PORT = 3128
CHUNK = 16 << 10
MOST = 256
"""Connections at the same time; more wait in the listeners' backlogs. Two ends each, of up to two chunks: all of them
must fit the memory of a holder even when nobody reads."""
BACKLOG = 128
USER = 65532
NETLINK_NETFILTER, NLMSG_ERROR = 12, 2


class End:
    """One socket of a pair: what is read here is written over there."""

    def __init__(self, sock: socket.socket, *, is_caller: bool = False, connecting: bool = False) -> None:
        self.sock = sock
        self.is_caller = is_caller
        self.connecting = connecting
        self.unsent = bytearray()
        self.is_read_out = False
        self.is_shut = False
        self.peer: End

    def wanted(self) -> int:
        if self.connecting:
            return selectors.EVENT_WRITE
        reads = not self.is_read_out and not self.peer.connecting and len(self.peer.unsent) < CHUNK
        return (selectors.EVENT_READ if reads else 0) | (selectors.EVENT_WRITE if self.unsent else 0)

    def act(self, mask: int) -> None:
        """Raises `OSError` when the connection broke."""
        if self.connecting:
            if error := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, "connect")
            self.connecting = False
            return
        if mask & selectors.EVENT_WRITE and self.unsent:
            del self.unsent[: self.sock.send(self.unsent)]
        if mask & selectors.EVENT_READ:
            data = self.sock.recv(CHUNK)
            self.peer.unsent += data
            self.is_read_out = not data
            if self.is_caller and not data and is_hung_up(self.sock):
                # Not only silent, but gone: who still works for it is to hear of that.
                raise ConnectionResetError

    def pass_end_on(self) -> None:
        """The other side has said all: so do we, and may still be answered."""
        if self.peer.is_read_out and not self.unsent and not self.is_shut and not self.connecting:
            self.sock.shutdown(socket.SHUT_WR)
            self.is_shut = True


class Relay:
    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._listeners: list[tuple[socket.socket, Callable[[socket.socket], None]]] = []
        # The mutable state: both ends of each connection, and whether there is room for more.
        self._ends: set[End] = set()
        self._listening = True

    def listen(self, listener: socket.socket, welcome: "Callable[[socket.socket], None]") -> None:
        listener.setblocking(False)
        self._listeners.append((listener, welcome))
        self._selector.register(listener, selectors.EVENT_READ, welcome)

    def run(self) -> None:
        while True:
            for key, mask in self._selector.select():
                if isinstance(key.data, End):
                    self._move(key.data, mask)
                else:
                    self._accept(key.fileobj, key.data)  # type: ignore[arg-type]
            self._mind_the_room()

    def join(self, accepted: socket.socket, family: int, address: object) -> None:
        """Connects it to somebody else; whom nobody answers for is closed at once."""
        other = socket.socket(family, socket.SOCK_STREAM)
        other.setblocking(False)
        code = other.connect_ex(address)  # type: ignore[arg-type]
        if code not in (0, errno.EINPROGRESS):
            accepted.close()
            other.close()
            return
        near, far = End(accepted, is_caller=accepted.family == socket.AF_UNIX), End(other, connecting=code != 0)
        near.peer, far.peer = far, near
        for end in (near, far):
            self._ends.add(end)
            self._watch(end)

    def _accept(self, listener: socket.socket, welcome: "Callable[[socket.socket], None]") -> None:
        try:
            accepted, _ = listener.accept()
        except OSError:  # gone again, or no descriptors left for now
            return
        accepted.setblocking(False)
        welcome(accepted)

    def _move(self, end: End, mask: int) -> None:
        if end not in self._ends:  # ended by the other end in this very turn
            return
        try:
            end.act(mask)
            for each in (end, end.peer):
                each.pass_end_on()
        except BlockingIOError:
            return
        except OSError:
            self._end(end)
            return
        if end.is_shut and end.peer.is_shut:
            self._end(end)
            return
        for each in (end, end.peer):
            self._watch(each)

    def _watch(self, end: End) -> None:
        wanted = end.wanted()
        watched = self._selector.get_map().get(end.sock.fileno())
        if not wanted and watched:
            self._selector.unregister(end.sock)
        elif wanted and not watched:
            self._selector.register(end.sock, wanted, end)
        elif watched and watched.events != wanted:
            self._selector.modify(end.sock, wanted, end)

    def _end(self, end: End) -> None:
        for each in (end, end.peer):
            if each in self._ends:
                self._ends.discard(each)
                if self._selector.get_map().get(each.sock.fileno()):
                    self._selector.unregister(each.sock)
                each.sock.close()

    def _mind_the_room(self) -> None:
        has_room = len(self._ends) < 2 * MOST
        if has_room == self._listening:
            return
        self._listening = has_room
        for listener, welcome in self._listeners:
            if has_room:
                self._selector.register(listener, selectors.EVENT_READ, welcome)
            else:
                self._selector.unregister(listener)


def is_hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def knock(accepted: socket.socket, port: int) -> None:
    """On loopback a connection is there or refused at once; an application whose backlog is full is not well."""
    with accepted, socket.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
        other.settimeout(0.1)
        try:
            other.connect(("127.0.0.1", port))
            accepted.send(b"1")
        except OSError:
            pass


def unix_listener(name: str) -> socket.socket:
    path = f"{FOLDER}/{name}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o666)  # noqa: S103 - the directory is closed to everybody else
    listener.listen(BACKLOG)
    return listener


def install(filters: list[str]) -> None:
    """A batch is taken whole or not at all. Raises `OSError` when none is."""
    refusal = OSError("there is no filter")
    for text in filters:
        answers, _, batch = text.partition(":")
        try:
            send_batch(bytes.fromhex(batch), int(answers))
            return
        except OSError as error:
            refusal = error
    raise refusal


def send_batch(batch: bytes, answers: int) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
        kernel.settimeout(5)
        kernel.send(batch)
        while answers > 0:
            data = kernel.recv(1 << 16)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind == NLMSG_ERROR:
                    (error,) = struct.unpack_from("=i", data, 16)
                    if error:
                        raise OSError(-error, os.strerror(-error))
                    answers -= 1
                data = data[(length + 3) & ~3 :]


def give_up_rights() -> None:
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    with open("/proc/self/status") as file:
        rights = [line.split()[1] for line in file if line.startswith(("CapPrm:", "CapEff:", "CapAmb:"))]
    if len(rights) != 3 or any(int(right, 16) for right in rights):
        raise OSError("there are rights left")


def main(arguments: list[str]) -> None:
    if filters := [argument.partition("=")[2] for argument in arguments if argument.startswith("--filter=")]:
        install(filters)
        give_up_rights()
    if arguments[0] == "-":
        with unix_listener("net.sock"):
            while True:
                signal.pause()
    port = int(arguments[0])
    relay = Relay()
    if "--proxy" in arguments:
        inside = socket.create_server(("127.0.0.1", PROXY_PORT), backlog=BACKLOG)
        relay.listen(inside, lambda each: relay.join(each, socket.AF_UNIX, f"{FOLDER}/egress.sock"))
    relay.listen(unix_listener("knock.sock"), lambda each: knock(each, port))
    # Last: when it is there, all is.
    relay.listen(unix_listener("app.sock"), lambda each: relay.join(each, socket.AF_INET, ("127.0.0.1", port)))
    relay.run()


if __name__ == "__main__":
    main(sys.argv[1:])
