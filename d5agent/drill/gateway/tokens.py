"""Positions in the change stream, and the opaque tokens that stand for them.

An upstream token tells its position: clusterTime, the index of the operation inside its transaction,
and whether it is an event or a high-water mark ("before any event at that time"). The gateway's own
tokens carry the same, so they outlive the gateway: resuming is starting upstream at that time and
leaving out what stands at or before the position.
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, NamedTuple

EVENT_HEX: Final = 36
POST_BATCH_HEX: Final = 20

_EVENT_MAC: Final = 6
_POST_BATCH_MAC: Final = 1
_TWENTY_BITS: Final = (1 << 20) - 1
# Fixed noise: whoever reads a clusterTime out of a token shall fail in the rehearsal already.
_NOISE: Final = 0x5A_C3_96_0F_E1_78_2D_B4_4B_D2_87_1E
_POST_BATCH_NOISE: Final = 0xA5_3C_69_F0_1E_87_D2_4B_B4

# The upstream hex: 82 seconds increment, version, kind of token, index in the transaction, flags.
_TIME: Final = slice(2, 18)
_KIND_AT: Final = 22
_EVENT_KIND: Final = b"2C0100"
_ZERO: Final = 0x29
_ONE_BYTE: Final = 0x2B
_FROM_INVALIDATE: Final = b"6F"


class Position(NamedTuple):
    """A place between events: after the ordinal-th event of this time; ordinal 0 is before all."""

    time: int
    ordinal: int

    @property
    def seconds(self) -> int:
        return self.time >> 32

    @property
    def increment(self) -> int:
        return self.time & 0xFFFFFFFF


class InvalidTokenError(Exception):
    """A token of another cluster, or a damaged one."""


def upstream_position(token: bytes) -> Position:
    """Read the position that a mongod's token (hex, version 1 or 2) stands for."""
    time = int(token[_TIME], 16)
    if token[_KIND_AT : _KIND_AT + 6] != _EVENT_KIND:
        return Position(time, 0)
    at = _KIND_AT + 6
    kind = int(token[at : at + 2], 16)
    at += 2
    index = 0
    if kind != _ZERO:
        size = 2 * (kind - _ONE_BYTE + 1)
        index = int(token[at : at + size], 16) >> 1
        at += size
    invalidates = token[at : at + 2] == _FROM_INVALIDATE
    return Position(time, 1 + 2 * index + invalidates)


@dataclass(frozen=True, slots=True)
class TokenCodec:
    """Makes and reads the opaque tokens of one cluster."""

    cluster_id: bytes

    def event_token(self, position: Position) -> bytes:
        plain = (position.time << 32) | position.ordinal
        payload = (plain ^ _NOISE).to_bytes(12)
        return (payload + self._mac(payload, _EVENT_MAC)).hex().encode()

    def post_batch_token(self, position: Position) -> bytes:
        increment, ordinal = position.increment, min(position.ordinal, _TWENTY_BITS)
        if increment > _TWENTY_BITS:  # what does not fit repeats events after it; it loses none
            increment, ordinal = _TWENTY_BITS, 0
        plain = (position.seconds << 40) | (increment << 20) | ordinal
        payload = (plain ^ _POST_BATCH_NOISE).to_bytes(9)
        return (payload + self._mac(payload, _POST_BATCH_MAC)).hex().encode()

    def read(self, token: object) -> Position:
        """Read the position of a token of this cluster; InvalidTokenError for anything else."""
        if not isinstance(token, str) or len(token) not in {EVENT_HEX, POST_BATCH_HEX}:
            raise InvalidTokenError
        try:
            raw = bytes.fromhex(token)
        except ValueError as error:
            raise InvalidTokenError from error
        is_event = len(token) == EVENT_HEX
        mac = _EVENT_MAC if is_event else _POST_BATCH_MAC
        payload = raw[:-mac]
        if self._mac(payload, mac) != raw[-mac:]:
            raise InvalidTokenError
        if is_event:
            plain = int.from_bytes(payload) ^ _NOISE
            return Position(plain >> 32, plain & 0xFFFFFFFF)
        plain = int.from_bytes(payload) ^ _POST_BATCH_NOISE
        time = ((plain >> 40) << 32) | ((plain >> 20) & _TWENTY_BITS)
        return Position(time, plain & _TWENTY_BITS)

    def _mac(self, payload: bytes, size: int) -> bytes:
        return blake2b(payload, digest_size=size, key=self.cluster_id).digest()
