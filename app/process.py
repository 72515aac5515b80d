"""Settings of a process that has to answer within milliseconds."""

import gc
import sys

SWITCH_INTERVAL_S = 0.0005
"""The default lets a computing thread hold the GIL for 5 ms while an answer waits."""
GC_THRESHOLD = 2_000
"""A full collection over what the imports of Ray and torch leave behind stops a process for 60 to 130 ms (measured), so
that is frozen. What is left is the cyclic garbage of Serve's calls, 7,000 objects a second in a stream worker: at a
threshold of 50,000 the youngest generation alone took 50 to 140 ms every 7 s, and these were the p99."""


def settle_process() -> None:
    """Call it when everything is imported and built: what exists by then is never looked at by the collector again."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
