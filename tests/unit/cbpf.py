"""Runs a seccomp filter as the kernel would, to ask it about calls of an architecture that this machine is not."""

from __future__ import annotations

import struct

PASS, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000


def verdict(program: bytes, arch: int, nr: int, args: tuple[int, ...] = ()) -> str | int:
    """ "pass", "kill", or the errno."""
    data = struct.pack("<iIQ6Q", nr, arch, 0, *(args + (0,) * 6)[:6])
    instructions = list(struct.iter_unpack("=HBBI", program))
    assert len(instructions) <= 4096
    accumulator = at = 0
    while True:
        code, if_true, if_false, k = instructions[at]
        at += 1
        if code == 0x20:  # load a word
            assert k % 4 == 0
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif code == 0x54:  # and
            accumulator &= k
        elif code == 0x05:  # jump
            at += k
        elif code == 0x15:  # jump if equal
            at += if_true if accumulator == k else if_false
        elif code == 0x35:  # jump if greater or equal
            at += if_true if accumulator >= k else if_false
        elif code == 0x06:  # return
            return {PASS: "pass", KILL: "kill"}.get(k) or k & 0xFFFF
        else:
            raise AssertionError(f"no such instruction here: {code:#x}")
