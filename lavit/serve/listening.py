"""Where the page listens: light, so that a port in use is said before the model is opened."""

from __future__ import annotations

import errno
import socket


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; at port 0 the system chooses one.

    Raises:
        ValueError: the port is in use or not allowed, or the host is none of this machine.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}; give one from 1 to 65535, or 0 for any that is free")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} is in use; stop what listens there, or give another --port") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise ValueError(f"port {port} is not allowed to you; give a --port above 1023") from None
        raise ValueError(f"--host {host} cannot be listened on: {error.strerror}; 127.0.0.1 is this machine") from None


def address_of(listening: socket.socket) -> str:
    """The page's address."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
