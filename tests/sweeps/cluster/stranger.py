"""Another account of the machine, without a session's token, knocks at its ports and reads its files.

    python -m tests.sweeps.cluster.stranger TOKEN_FILE GCS_ADDRESS PORT...

Prints JSON: whether it could read the token, what the control store said to a write, which calls each port refused.
As root it becomes `nobody` first; else only the token sets it apart.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError

CALLS = [
    "/ray.rpc.InternalKVGcsService/InternalKVPut",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Push",
    "/ray.rpc.CoreWorkerService/PushTask",
]
NOBODY = 65534


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def call(port: int, path: str) -> bytes:
    """The answer to an empty gRPC call in plain HTTP/2, as it came."""
    names = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "a", "te": "trailers"}
    names["content-type"] = "application/grpc"
    headers = b"".join(
        b"\x10" + b"".join(bytes([len(text)]) + text.encode() for text in pair) for pair in names.items()
    )
    with socket.create_connection(("127.0.0.1", port), timeout=120) as server:
        server.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, headers))
        server.sendall(frame(0, 1, 1, bytes(5)))
        answer = b""
        while b"grpc-status" not in answer and b"HTTP/1" not in answer and (more := server.recv(4096)):
            answer += more
    return answer


def refused(port: int) -> list[str]:
    """The calls that a port refuses for want of a token; an HTTP server refuses all."""
    answers = {path: call(port, path) for path in CALLS}
    return [path.rpartition("/")[2] for path, answer in answers.items() if b"InvalidAuthToken" in answer] or (
        ["HTTP"] if all(b"400" in a[:16] or b"401" in a[:16] for a in answers.values()) else []
    )


def main() -> None:
    token, address, ports = sys.argv[1], sys.argv[2], [int(port) for port in sys.argv[3:]]
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    try:
        read = bool(Path(token).read_text(encoding="utf-8"))
    except PermissionError:
        read = False
    try:
        said = str(GcsClient(address=address).internal_kv_put(b"stranger", b"a class", True, b"fun", timeout=120))
    except AuthenticationError:
        said = "refused"
    answers = {}
    for port in ports:
        with suppress(ConnectionRefusedError):  # its process has ended since
            answers[port] = refused(port)
    print(json.dumps({"read": read, "said": said, "ports": answers}))


if __name__ == "__main__":
    main()
