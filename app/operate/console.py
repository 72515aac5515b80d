"""What a long run says on the terminal: lines that stay, and one that renews itself."""

import shutil
import sys
import time
from typing import TextIO

INTERVAL_S = 5.0
CLEAR = "\r\033[K"


class Console:
    """On a terminal the status line is written over itself; into a file it is repeated every 5 s."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._renewed_s = -INTERVAL_S
        self._open = False

    def renew(self, text: str) -> None:
        """Shows the text in the place of the one before."""
        now_s = time.monotonic()
        if self._out.isatty():
            width = shutil.get_terminal_size().columns
            self._write(CLEAR + text[: width - 1])
            self._open = True
        elif now_s - self._renewed_s >= INTERVAL_S:
            self._renewed_s = now_s
            self._write(text + "\n")

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._write((CLEAR if self._open else "") + text + "\n")
        self._open = False

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
