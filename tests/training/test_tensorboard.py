"""TensorBoard's event files are correct byte by byte."""

from pathlib import Path

import pytest

from lm.training import tensorboard

GOLDEN_START = (
    "1800000000000000a37f4b2209000000000000f03f1a0d627261696e2e4576656e743a3286bf577a0f000000000000006d532b09090000"
    "00000000f03f10053a02080184236d36"
)
GOLDEN_SCALARS = (
    "31000000000000009d8383e909000000000000f03f10ac022a230a0b0a046c6f7373150000c03f0a140a0d6576616c2f6d6c6d5f6c6f73"
    "7315000010c0f61c49cb"
)


def test_the_checksum_is_that_of_rfc_3720():
    assert tensorboard.crc32c(b"123456789") == 0xE3069283
    assert tensorboard.crc32c(bytes(32)) == 0x8A9136AA


def test_a_file_holds_its_version_where_it_starts_and_the_scalars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The bytes that Google's protobuf library and tensorboardX write for the same events."""
    monkeypatch.setattr("time.time", lambda: 1.0)
    writer = tensorboard.ScalarWriter(tmp_path, 5)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("events.out.tfevents.1.")
    before = path.read_bytes()
    writer.write(300, {"loss": 1.5, "eval/mlm_loss": -2.25})
    assert before.hex() == GOLDEN_START
    assert path.read_bytes()[len(before) :].hex() == GOLDEN_SCALARS
    writer.close()
