"""Strings become 128-bit keys, many at once: one join, one pass in compiled code, no Python object per string."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..kit.compiled import entry

# With millions of people every row lies somewhere else in memory, and waiting for it takes longer than all the work on it. So loops ask
# for rows of some places ahead.
ahead, near, nearer = 16, 8, 4

_C1 = np.uint64(0x87C37B91114253D5)
_C2 = np.uint64(0x4CF5AD432745937F)


@njit(inline="always")
def _rotl(x, r):
    return (x << np.uint64(r)) | (x >> np.uint64(64 - r))


@njit(inline="always")
def mix(k):
    """Spread the bits of a 64-bit value (the finaliser of MurmurHash3)."""
    k ^= k >> np.uint64(33)
    k *= np.uint64(0xFF51AFD7ED558CCD)
    k ^= k >> np.uint64(33)
    k *= np.uint64(0xC4CEB9FE1A85EC53)
    k ^= k >> np.uint64(33)
    return k


@intrinsic
def load8(typingctx, buf, at):
    """Load eight bytes at any address as one little-endian number, without a check: the caller has made sure that they are there."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        word = ir.IntType(64)
        place = builder.gep(array.data, [arguments[1]])
        return builder.load(builder.bitcast(place, word.as_pointer()), align=1, typ=word)

    return types.uint64(buf, types.int64), generate


@intrinsic
def prefetch(typingctx, rows, at):
    """Ask the processor for row `at` of an array in advance, so that it is there when it is read. Any index is harmless."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        number, byte, word = arguments[1].type, ir.IntType(8).as_pointer(), ir.IntType(32)
        size = context.get_abi_sizeof(array.data.type.pointee)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        first = builder.add(builder.ptrtoint(array.data, number), builder.mul(arguments[1], ir.Constant(number, size)))
        # A larger row may begin on one line of the processor's cache and end on the next.
        for offset in (0, size - 1) if size > 16 else (0,):
            place = builder.inttoptr(builder.add(first, ir.Constant(number, offset)), byte)
            builder.call(function, [place, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(rows, types.int64), generate


_BLOCK = ir.VectorType(ir.IntType(8), 64)


def _load64(context, builder, array_type, array, at):
    """Return 64 bytes at any address as a vector."""
    place = builder.gep(context.make_array(array_type)(context, builder, array).data, [at])
    return builder.load(builder.bitcast(place, _BLOCK.as_pointer()), align=1, typ=_BLOCK)


def _bits_where(choose):
    """Return code for an intrinsic (buf, at) -> uint64 that sets a bit, the first byte's the lowest, for each of 64 bytes that is chosen.

    ``choose(builder, is_)`` combines comparisons like ``is_("<", 32)`` of all bytes with one number.
    """

    def generate(context, builder, signature, arguments):
        block = _load64(context, builder, signature.args[0], *arguments)

        def is_(how: str, byte: int):
            return builder.icmp_unsigned(how, block, ir.Constant(_BLOCK, [byte] * 64))

        return builder.bitcast(choose(builder, is_), ir.IntType(64))

    return generate


def _any(builder, first, *rest):
    for other in rest:
        first = builder.or_(first, other)
    return first


@intrinsic
def special_bytes(typingctx, buf, at):
    """Return which of the 64 bytes at `at` are quotes, backslashes, control characters or not ASCII."""

    def chosen(builder, is_):
        return _any(builder, is_("==", 0x22), is_("==", 0x5C), is_("<", 0x20), is_(">=", 0x7F))

    return types.uint64(buf, types.int64), _bits_where(chosen)


@intrinsic
def unusual_in_addresses(typingctx, buf, at):
    """Return which of the 64 bytes at `at` make an email address one that needs a closer look."""

    def chosen(builder, is_):
        return _any(builder, is_("<=", 0x20), is_(">=", 0x7F), is_("==", 0x3C), is_("==", 0x3E), is_("==", 0x2C))

    return types.uint64(buf, types.int64), _bits_where(chosen)


@intrinsic
def at_signs(typingctx, buf, at):
    """Return which of the 64 bytes at `at` are @."""
    return types.uint64(buf, types.int64), _bits_where(lambda builder, is_: is_("==", 0x40))


@intrinsic
def lower_case(typingctx, buf, at, out, to):
    """Write the 64 bytes at `at` to `to` of another array, ASCII letters in lower case."""

    def generate(context, builder, signature, arguments):
        buf, at, out, to = arguments
        block = _load64(context, builder, signature.args[0], buf, at)

        def same(byte: int):
            return ir.Constant(_BLOCK, [byte] * 64)

        upper = builder.and_(builder.icmp_unsigned(">=", block, same(0x41)), builder.icmp_unsigned("<=", block, same(0x5A)))
        lower = builder.or_(block, builder.select(upper, same(0x20), same(0)))
        place = builder.gep(context.make_array(signature.args[2])(context, builder, out).data, [to])
        builder.store(lower, builder.bitcast(place, _BLOCK.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(buf, types.int64, out, types.int64), generate


@intrinsic
def lowest_bit(typingctx, word):
    """Return the number of the lowest bit that is set; the word must not be zero."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@njit(inline="always")
def _tail(buf, at, n):
    """Return the n (1 to 8) bytes at `at` as a number."""
    if at + 8 <= buf.size:
        return load8(buf, at) & (np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - 8 * n))
    k = np.uint64(0)
    for i in range(n):
        k |= np.uint64(buf[at + i]) << np.uint64(8 * i)
    return k


@entry
def _hash_range(buf, start, end):
    """MurmurHash3_x64_128 with seed 0 (A. Appleby, public domain) over buf[start:end]."""
    h1 = np.uint64(0)
    h2 = np.uint64(0)
    at = start
    while at + 16 <= end:
        k1 = load8(buf, at)
        k2 = load8(buf, at + 8)
        h1 ^= _rotl(k1 * _C1, 31) * _C2
        h1 = (_rotl(h1, 27) + h2) * np.uint64(5) + np.uint64(0x52DCE729)
        h2 ^= _rotl(k2 * _C2, 33) * _C1
        h2 = (_rotl(h2, 31) + h1) * np.uint64(5) + np.uint64(0x38495AB5)
        at += 16
    left = end - at
    if left > 8:
        h2 ^= _rotl(_tail(buf, at + 8, left - 8) * _C2, 33) * _C1
        left = 8
    if left > 0:
        h1 ^= _rotl(_tail(buf, at, left) * _C1, 31) * _C2
    size = np.uint64(end - start)
    h1 ^= size
    h2 ^= size
    h1 += h2
    h2 += h1
    h1 = mix(h1)
    h2 = mix(h2)
    h1 += h2
    h2 += h1
    return h1, h2


@entry
def _hash_parts(buf, out):
    """Hash the parts of buf that zero bytes separate into out[n, 2]; return how many parts there were."""
    start = 0
    n = 0
    size = buf.size
    for at in range(size + 1):
        if at == size or buf[at] == 0:
            if n < out.shape[0]:
                out[n, 0], out[n, 1] = _hash_range(buf, start, at)
            n += 1
            start = at + 1
    return n


def hash_texts(texts: list[str]) -> np.ndarray:
    """Return a uint64 array [n, 2] of 128-bit hashes; the empty text hashes to (0, 0)."""
    out = np.zeros((len(texts), 2), np.uint64)
    if not texts:
        return out
    joined = np.frombuffer("\0".join(texts).encode("utf-8", "surrogatepass"), np.uint8)
    if _hash_parts(joined, out) != len(texts):
        # A text with a NUL in it: hash one by one. Parsers strip control characters, so this is rare.
        for i, text in enumerate(texts):
            raw = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
            out[i] = _hash_range(raw, 0, raw.size)
    return out


def hash_text(text: str) -> tuple[int, int]:
    """Return the 128-bit hash of one text as two integers; the same as in ``hash_texts``."""
    high, low = hash_texts([text])[0]
    return int(high), int(low)
