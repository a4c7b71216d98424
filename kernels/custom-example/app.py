"""A custom container: an HTTP server with state in memory, a stream, a WebSocket, and a health that can be lost.

Nothing in it knows of kernelpool: any image with an HTTP server will do. This one needs Python's standard library only.

    GET  /            what this session has counted so far, one more with each request
    GET  /stream      server-sent events, one every quarter of a second
    GET  /ws          a WebSocket that says back what it hears, in capitals
    POST /echo        the body, back again while it comes in
    GET  /request     the headers that arrived
    GET  /go          a redirect
    GET  /health      200; 503 after POST /break
    POST /exit        the server exits, with the status that the body says
"""

import base64
import hashlib
import json
import os
import struct
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

PORT = 8080
MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    counted = count(1)
    is_well = True

    def do_GET(self):
        routes = {
            "/": lambda: self.say({"count": next(self.counted), "greeting": os.environ.get("GREETING", "hello")}),
            "/stream": self.stream,
            "/ws": self.websocket,
            "/request": lambda: self.say(dict(self.headers.items())),
            "/go": lambda: self.say({}, 302, Location="http://example.com/elsewhere"),
            "/health": lambda: self.say({"well": Handler.is_well}, 200 if Handler.is_well else 503),
        }
        routes.get(self.route, self.nothing)()

    def do_POST(self):
        {"/echo": self.echo, "/break": self.break_health, "/exit": self.exit}.get(self.route, self.nothing)()

    @property
    def route(self):
        return self.path.partition("?")[0]

    def say(self, value, status=200, **headers):
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": len(body), **headers}.items():
            self.send_header(name, str(text))
        self.end_headers()
        self.wfile.write(body)

    def nothing(self):
        self.say({"error": f"nothing is at {self.path}"}, 404)

    def stream(self):
        self.begin_chunks("text/event-stream")
        for number in range(4):
            self.chunk(f"data: {number}\n\n".encode())
            time.sleep(0.25)
        self.chunk(b"")

    def echo(self):
        self.begin_chunks("application/octet-stream")
        for piece in self.body():
            self.chunk(piece)
        self.chunk(b"")

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            left = int(self.headers.get("Content-Length", 0))
            while left:
                piece = self.rfile.read1(min(left, 1 << 16))
                left -= len(piece)
                yield piece
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def begin_chunks(self, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def break_health(self):
        Handler.is_well = False
        self.say({"well": False})

    def exit(self):
        os._exit(int(b"".join(self.body()) or b"0"))

    def websocket(self):
        key = self.headers.get("Sec-WebSocket-Key", "").encode()
        accept = base64.b64encode(hashlib.sha1(key + MAGIC).digest()).decode()
        self.send_response(101)
        for name, value in {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        while True:
            kind, data = self.read_frame()
            if kind == TEXT:
                self.write_frame(TEXT, data.decode().upper().encode())
            elif kind == PING:
                self.write_frame(PONG, data)
            elif kind == CLOSE:
                return self.write_frame(CLOSE, data)

    def read_frame(self):
        """Of a client, whose frames are masked."""
        first, second = self.rfile.read(2)
        size = second & 127
        if size > 125:
            size = int.from_bytes(self.rfile.read(2 if size == 126 else 8))
        mask = self.rfile.read(4)
        return first & 15, bytes(byte ^ mask[i % 4] for i, byte in enumerate(self.rfile.read(size)))

    def write_frame(self, kind, data):
        size = bytes([len(data)]) if len(data) < 126 else struct.pack("!BH", 126, len(data))
        self.wfile.write(bytes([128 | kind]) + size + data)

    def log_message(self, format, *args):
        print(format % args, flush=True)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
