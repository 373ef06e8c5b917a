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


def test_tensorboard_opens_the_files_of_a_resumed_run(tmp_path: Path):
    """The later file replaces the steps of the earlier one from where it starts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps in ((1, (10, 20, 30)), (21, (30, 40))):
        folder = tmp_path / str(start)  # two processes, so two names; here they would have the same
        writer = tensorboard.ScalarWriter(folder, start)
        for step in steps:
            writer.write(step, {"loss": float(step + start), "eval/mlm_loss": 0.5})
        writer.close()
        for number, file in enumerate(sorted(folder.iterdir())):
            file.rename(tmp_path / f"{file.name}.{start}.{number}")
        folder.rmdir()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert sorted(read.Tags()["scalars"]) == ["eval/mlm_loss", "loss"]
    assert [(each.step, each.value) for each in read.Scalars("loss")] == [
        (10, 11.0),
        (20, 21.0),
        (30, 51.0),
        (40, 61.0),
    ]
