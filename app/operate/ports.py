"""Ports of this machine."""

import socket


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether nobody listens there. Serve's proxy does not notice itself: two of them share a port in silence."""
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((host, port))
        except OSError:
            return False
    return True


def free_port(preferred: int) -> int:
    """The preferred port or the next free one behind it."""
    return next(port for port in range(preferred, 65536) if is_free(port))
