"""The connection to a Ray cluster, for whatever hands it work."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from itmfeat.errors import ItmfeatError, MissingPackageError, reason_of


@contextmanager
def connection(address: str | None = None) -> Iterator[Any]:
    """The module ray, connected to `address`, else RAY_ADDRESS, a cluster that runs here, or a new one.

    A connection that is there already is used, and stays. Ray prints on stdout when a machine dies, and what
    it held back when the connection ends; stdout is for results, so meanwhile it is stderr.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError("--engine ray needs Ray: pip install 'itmfeat[ray]'") from error
    ours = not ray.is_initialized()
    with redirect_stdout(sys.stderr):
        if ours:
            _connect(ray, address)
        try:
            yield ray
        finally:
            if ours:
                ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    place = "--address" if address else "RAY_ADDRESS"
    try:
        _knock(address or os.environ.get("RAY_ADDRESS", ""))
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, TimeoutError, socket.gaierror) as error:
        raise ItmfeatError(
            f"no Ray cluster answers: start one with `ray start --head`, or correct {place}, whose port is "
            "6379 if none was chosen, and 10001 with ray://, not that of the dashboard"
        ) from error
    except (RuntimeError, ValueError, OverflowError) as error:
        reason = reason_of(error)
        raise ItmfeatError(f"Ray does not start ({reason}); correct {place}") from error


def _knock(address: str) -> None:
    """An error at once where Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address.startswith("ray://") and not (host and port.isdigit()):
        raise ValueError(f"{address} names no host and port, as ray://host:10001 does")
    if not (colon and port.isdigit()):
        return
    with socket.create_connection((host, int(port)), 5) as server:
        server.settimeout(20)  # a busy cluster takes its time to answer
        if os.environ.get("RAY_USE_TLS", "0") == "0" and not _speaks_grpc(server):
            raise ConnectionError


def _speaks_grpc(server: socket.socket) -> bool:
    """Whether the answer to a greeting in HTTP/2 (RFC 9113, 3.4) is one, as that of Ray's servers."""
    server.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    with server.makefile("rb") as answer:
        return answer.read(9)[3:4] == b"\4"  # the type of a frame of settings
