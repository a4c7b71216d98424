"""The session's Jupyter clients: what each is told, who asked what, and what one that comes back has missed."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

from kernelpool.agent.client import Client
from kernelpool.agent.frames import error, frame_of, own_frame
from kernelpool.agent.requests import Request, Requests
from kernelpool.errors import InvalidRequest, TooManyConnections
from kernelpool.protocol.framing import Head, WireMessage
from kernelpool.protocol.messages import Message
from kernelpool.protocol.ring import Entry, Ring

MAX_CLIENTS = 32
MAX_REMEMBERED = 32
"""Clients that may come back. Past it the one that left first is forgotten, and what was kept for it alone."""
MAX_ID = 256
VITAL = {"status", "execute_input", "error", "shutdown_reply"}
"""What of IOPub outlives outputs when a client is slow. What is for one client always does."""


class Clients:
    """Whoever is connected, and the ring they read from. There is none as long as nobody ever connected."""

    def __init__(self, max_bytes: int, max_messages: int) -> None:
        self._ring = Ring(max_bytes, max_messages)
        # The mutable state besides the ring: who is here, where those are who may come back (what had arrived, what
        # was handed over), what was asked and by whom, and the question that waits for somebody's input.
        self._here: dict[str, Client] = {}
        self._away: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._requests = Requests()
        self._input: tuple[Request, bytes] | None = None
        self._speaker = "kernelpool"
        """The session of the kernel's messages, and of ours among them."""
        self.last_heard = time.time()

    def __repr__(self) -> str:
        people = f"{len(self._here)} here, {len(self._away)} away"
        return f"<Clients [{people}, {len(self._requests)} open requests, {self._ring}]>"

    @property
    def count(self) -> int:
        return len(self._here)

    # --- coming and going

    def connect(self, session_id: str, last_msg_id: str | None) -> Client:
        """Raises `InvalidRequest`, `TooManyConnections`."""
        if len(session_id) > MAX_ID or len(last_msg_id or "") > MAX_ID:
            raise InvalidRequest(f"session_id and last_msg_id must have at most {MAX_ID} characters")
        if len(self._here) >= MAX_CLIENTS and session_id not in self._here:
            raise TooManyConnections(f"the session has {MAX_CLIENTS} Jupyter clients already")
        key = session_id or secrets.token_hex(16)
        if (older := self._here.pop(key, None)) is not None:
            self._leave(older)
            older.replace()
        position, handed = self._away.pop(key, (self._ring.stop, self._ring.stop))
        if last_msg_id is not None and (seen := self._ring.find(last_msg_id)) is not None:
            position = seen + 1
        client = self._here[key] = Client(key, self._ring, position, handed, can_return=bool(session_id))
        self._ask_again(client)
        return client

    def disconnect(self, client: Client) -> None:
        """Idempotent, and nothing when a newer one has its place."""
        if self._here.get(client.key) is client:
            del self._here[client.key]
            self._leave(client)
        if not self._here and not self._away:
            self._ring.clear()

    def _leave(self, client: Client) -> None:
        if client.can_return:
            self._away[client.key] = (client.confirmed, client.handed)
            if len(self._away) > MAX_REMEMBERED:
                self._requests.forget(self._away.popitem(last=False)[0])
        else:
            self._requests.forget(client.key)

    # --- requests

    def ask(self, client: Client, message: WireMessage, head: Head) -> Request | None:
        """Remembers who asks. None when it is not to be passed on: something with its id has no answer yet, which will
        be its answer too; or too many have none, which is answered here."""
        if self._requests.get(head.msg_id) is not None:
            return None
        request = Request(client.key, message.channel, head, message.header, message.size)
        if not self._requests.add(request):
            self._say_answer(
                request, error("too many requests of Jupyter clients have no answer yet", "TooManyRequests")
            )
            return None
        return request

    def may_answer_input(self, client: Client) -> bool:
        """Whether input is waited for, and from this client. Once."""
        if self._input is None or self._input[0].client != client.key:
            return False
        self._input = None
        return True

    def _ask_again(self, client: Client) -> None:
        """What waits for this client's input, though it arrived before."""
        if self._input is not None and self._input[0].client == client.key:
            self._put(Entry(self._input[1], secrets.token_hex(16), client.key, vital=True))

    # --- what the kernel says

    def heard(self, channel: str, message: Message) -> None:
        """IOPub is for all; what comes on the other channels is for who asked."""
        self.last_heard = time.time()
        self._speaker = message.session or self._speaker
        if not self._here and not self._away:
            return
        request = self._requests.get(message.parent_id)
        if channel == "control" and request is not None and request.head.subshell_id is not None:
            channel = request.channel  # see `kernel.SUBSHELLS_ON_CONTROL`
        if channel != "iopub" and (request is None or (channel != "stdin" and request.channel != channel)):
            return
        frame = frame_of(channel, message)
        if request is not None:
            self._follow(request, channel, message, frame)
        target = request.client if request is not None and channel != "iopub" else None
        self._put(Entry(frame, message.msg_id, target, vital=target is not None or message.msg_type in VITAL))

    def _follow(self, request: Request, channel: str, message: Message, frame: bytes) -> None:
        if channel == "stdin":
            self._input = (request, frame)
        elif channel == "iopub":
            if message.content.get("execution_state") == "idle":
                self._requests.idle(request)
        else:
            self._close(request)

    def _close(self, request: Request) -> bool:
        if self._input is not None and self._input[0] is request:
            self._input = None
        return self._requests.close(request)

    # --- what we say ourselves

    def say(self, msg_type: str, content: dict[str, Any], parent: bytes = b"{}", *, once: bool = False) -> None:
        """On IOPub, to all."""
        self._say("iopub", None, msg_type, content, parent, once=once)

    def answer(self, request: Request, content: dict[str, Any]) -> None:
        """In place of the kernel: the reply, with its statuses around it. Nothing when it was answered."""
        if self._close(request):
            self._say_answer(request, content)

    def _say_answer(self, request: Request, content: dict[str, Any]) -> None:
        self.say("status", {"execution_state": "busy"}, request.header)
        if content.get("status") == "error" and request.head.msg_type == "execute_request":
            self.say("error", {name: content[name] for name in ("ename", "evalue", "traceback")}, request.header)
        if request.is_answered:
            kind = request.head.msg_type.removesuffix("_request") + "_reply"
            self._say(request.channel, request.client, kind, content, request.header)
        self.say("status", {"execution_state": "idle"}, request.header)

    def refuse(self, request: Request, why: str, ename: str = "KernelpoolError") -> None:
        self.answer(request, error(why, ename))

    def lose(self, why: str, but: Collection[str] = ()) -> None:
        """The kernel is gone: whatever was asked of it ends, but what is kept for the next."""
        for request in self._requests:
            if request.head.msg_id not in but:
                self.refuse(request, why, "KernelDied")
        self._input = None

    def _say(
        self,
        channel: str,
        target: str | None,
        msg_type: str,
        content: dict[str, Any],
        parent: bytes,
        *,
        once: bool = False,
    ) -> None:
        if self._here or self._away:
            msg_id, frame = own_frame(channel, msg_type, content, parent, self._speaker)
            self._put(Entry(frame, msg_id, target, target is not None or msg_type in VITAL, once))

    def _put(self, entry: Entry) -> None:
        self._ring.append(entry)
        for client in self._here.values():
            if entry.target in (None, client.key):
                client.tell()
