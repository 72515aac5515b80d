"""How this package's compiled code is compiled: by numba, without the GIL, once for all processes.

Kernels make no arrays. So numba need not count references to those they are given (`_nrt=False`), which took a third
of an update's time: 317 ns with, 200 ns without.

numba's cache notices a change of the file that a kernel stands in, not of the files it calls into. So kernels carry
in their names a hash of everything that is compiled here, and what an older version left is not found.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt
from numba import njit

F = TypeVar("F", bound=Callable[..., Any])
Array = npt.NDArray[Any]

SOURCES = ("compiled", "prefetch", "memory", "blocks", "keytable", "sums", "entries", "kernels")


def _version() -> str:
    texts = [Path(__file__).with_name(f"{name}.py").read_bytes() for name in SOURCES]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:8]


VERSION = _version()


def kernel(function: F) -> F:
    """Called from Python: compiled at its first call, then loaded from __pycache__ by every process."""
    function.__qualname__ += f"_{VERSION}"
    return njit(nogil=True, cache=True, error_model="numpy", _nrt=False)(function)  # type: ignore[no-any-return]


def part(function: F) -> F:
    """Called from kernels only, and made part of them."""
    return njit(nogil=True, error_model="numpy", forceinline=True, _nrt=False)(function)  # type: ignore[no-any-return]
