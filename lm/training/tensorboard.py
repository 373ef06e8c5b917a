"""Writes scalars to TensorBoard's event files: records with checksums, each a protocol buffer.

https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto
and summary.proto in the same folder
https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_POLYNOMIAL = 0x82F63B78  # the polynomial of CRC-32C, bits reversed
_MASK = 0xA282EAD8
_START = 1  # SessionLog.START: TensorBoard drops the scalars of earlier files from this step on


def _table() -> Iterator[int]:
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        yield value


_TABLE = tuple(_table())


def crc32c(data: bytes) -> int:
    """Returns the CRC-32C of RFC 3720, appendix B.4."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


class ScalarWriter:
    """Appends scalars to a new file, unbuffered: a write that fails raises in `write`."""

    def __init__(self, folder: Path, start: int):
        """Creates a file whose scalars replace those of earlier files from step `start` on."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "ab", buffering=0)  # noqa: SIM115
        self._file.write(_record(_event(0, _bytes(3, b"brain.Event:2"))))
        self._file.write(_record(_event(start, _bytes(7, _integer(1, _START)))))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        values = (_bytes(1, name.encode()) + _float(2, value) for name, value in scalars.items())
        summary = b"".join(_bytes(1, value) for value in values)
        self._file.write(_record(_event(step, _bytes(5, summary))))

    def close(self) -> None:
        self._file.close()


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    value = crc32c(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + _MASK) & 0xFFFFFFFF)


def _event(step: int, what: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", time.time()) + (_integer(2, step) if step else b"") + what


# --- fields of a protocol buffer: number and wire type, then the value


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)
