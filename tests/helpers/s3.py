"""A server on this machine that speaks S3 (moto), and one between it and us that breaks off or falls silent."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest

KEYS = {"DEFAULT_REGION": "us-east-1", "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket's folder."""
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs", exc_type=ImportError)
    server_of = pytest.importorskip("moto.server", reason="needs moto[server]", exc_type=ImportError)
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"ENDPOINT_URL": f"http://{host}:{port}", **KEYS}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()  # what it keeps is the process's
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield "s3://bucket/folder"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


class Between:
    """Hands on what client and server say, until the client has sent so many bytes; then it does so no more.

    Args:
        server: whose address stands in AWS_ENDPOINT_URL.
        silent: then say nothing, for ever; else close all connections and take none.
    """

    def __init__(self, server: str, sent: int, *, silent: bool = False) -> None:
        host, _, port = server.removeprefix("http://").rpartition(":")
        self.server, self.left, self.silent = (host, int(port)), sent, silent
        self.over = threading.Event()
        self.kept: list[socket.socket] = []
        self.asked = 0  # connections taken
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End all connections."""
        for each in (self.listener, *self.kept):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self.kept.append(client)
                self.asked += 1
                if not self.over.is_set():
                    server = socket.create_connection(self.server)
                    self.kept.append(server)
                    for ends in ((client, server), (server, client)):
                        threading.Thread(target=self._hand_on, args=(*ends, ends[0] is client), daemon=True).start()

    def _hand_on(self, here: socket.socket, there: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := here.recv(1 << 16):
                self.left -= len(data) if counted else 0
                if self.left < 0:
                    self.over.set()
                    if not self.silent:
                        self.close()
                    return
                there.sendall(data)
