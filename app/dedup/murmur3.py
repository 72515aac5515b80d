"""128-bit hashes of ids: MurmurHash3_x64_128 (Austin Appleby, public domain), seed 0, the same in every process."""

import numpy as np

from app.features.compiled import Array, kernel, part
from app.features.keytable import load_word

C1, C2 = np.uint64(0x87C37B91114253D5), np.uint64(0x4CF5AD432745937F)
MIX1, MIX2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
ADD1, ADD2, FIVE = np.uint64(0x52DCE729), np.uint64(0x38495AB5), np.uint64(5)
HALF = np.uint64(33)


@part
def rotate(word: np.uint64, bits: int) -> np.uint64:
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@part
def scramble_high(data: Array, start: int, count: int) -> np.uint64:
    return rotate(np.uint64(load_word(data, start, count)) * C1, 31) * C2


@part
def scramble_low(data: Array, start: int, count: int) -> np.uint64:
    return rotate(np.uint64(load_word(data, start, count)) * C2, 33) * C1


@part
def finish(word: np.uint64) -> np.uint64:
    word = (word ^ (word >> HALF)) * MIX1
    word = (word ^ (word >> HALF)) * MIX2
    return word ^ (word >> HALF)


@part
def hash_bytes(data: Array, start: int, stop: int) -> tuple[np.uint64, np.uint64]:
    size = np.uint64(stop - start)
    high, low = np.uint64(0), np.uint64(0)
    while stop - start >= 16:
        high = (rotate(high ^ scramble_high(data, start, 8), 27) + low) * FIVE + ADD1
        low = (rotate(low ^ scramble_low(data, start + 8, 8), 31) + high) * FIVE + ADD2
        start += 16
    rest = stop - start
    if rest > 8:
        low ^= scramble_low(data, start + 8, rest - 8)
    if rest > 0:
        high ^= scramble_high(data, start, min(rest, 8))
    high, low = high ^ size, low ^ size
    high += low
    low += high
    high, low = finish(high), finish(low)
    high += low
    return high, low + high


@kernel
def hash_ids(data: Array, starts: Array, stops: Array, codes: Array) -> None:
    """Fills `codes` (n, 2) with the hashes of `data[starts[i]:stops[i]]`, the high word first."""
    for row in range(len(codes)):
        codes[row, 0], codes[row, 1] = hash_bytes(data, starts[row], stops[row])
