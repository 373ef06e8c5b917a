"""A store gives back what was written, wherever it is read from, and refuses what does not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lm.data import store
from lm.data.manifest import SPLITS
from lm.data.store import Split, Store
from lm.errors import InputError
from lm.tokenizers.sentencepiece_tokenizer import SentencePiece


@pytest.fixture
def copied(made: Store, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.path, tmp_path / "store"))


def spans(split: Split, rng: np.random.Generator, count: int = 50) -> tuple[np.ndarray, np.ndarray]:
    starts = rng.integers(0, split.num_tokens, count)
    return starts, rng.integers(0, np.minimum(40, split.num_tokens - starts) + 1)


def test_reading_from_disk_equals_reading_from_memory(made: Store, rng: np.random.Generator):
    on_disk = Store.open(made.path, memory_limit=0)
    assert not isinstance(on_disk.train._tokens, np.ndarray)
    starts, lengths = spans(made.train, rng)
    expected = made.train.read(starts, lengths)
    assert expected.dtype == np.uint16
    np.testing.assert_array_equal(on_disk.train.read(starts, lengths), expected)
    whole = made.train.read(np.array([0]), np.array([made.train.num_tokens]))
    parts = [whole[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    np.testing.assert_array_equal(expected, np.concatenate(parts))
    assert on_disk.train.read(starts[:0], lengths[:0]).shape == (0,)


def test_manifest_counts_what_is_there(made: Store):
    for name in SPLITS:
        split: Split = getattr(made, name)
        counts = made.manifest["splits"][name]
        assert counts == {
            "documents": split.num_documents,
            "sentences": len(split.sentence_offsets) - 1,
            "tokens": split.num_tokens,
        }
        assert split.document_offsets[-1] == counts["sentences"]
        assert (np.diff(split.sentence_offsets) > 0).all()
        assert (np.diff(split.document_offsets) > 0).all()
    tokens = made.train.read(np.array([0]), np.array([made.train.num_tokens]))
    counts = np.bincount(tokens)
    assert made.manifest["most_frequent_token"] == {
        "id": int(counts.argmax()),
        "piece": made.tokenizer.id_to_piece(int(counts.argmax())),
        "share": pytest.approx(counts.max() / len(tokens)),
    }
    assert not np.isin(tokens, made.tokenizer.special_ids).any()


def test_another_tokenizer_does_not_belong(made: Store):
    other = SentencePiece.train(["other words"], vocab_size=600)
    with pytest.raises(InputError, match="tokenizer and store do not belong together"):
        Store.open(made.path, other)
    assert Store.open(made.path, made.tokenizer).tokenizer.fingerprint == made.tokenizer.fingerprint


def test_an_exchanged_or_lost_tokenizer_is_noticed(made: Store, copied: Path):
    (copied / "tokenizer.model").write_bytes(SentencePiece.train(["other"], vocab_size=600).to_bytes())
    with pytest.raises(InputError, match="do not belong together"):
        Store.open(str(copied))
    (copied / "tokenizer.model").unlink()
    with pytest.raises(InputError, match=r"has lost tokenizer\.model"):
        Store.open(str(copied))


def test_a_store_without_manifest_is_absent(copied: Path):
    (copied / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"no complete token store at .*; make one with launch/prepare.py --out="):
        Store.open(str(copied))


def test_another_format_version_is_refused(copied: Path):
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(InputError, match="format version 99; this code reads 1 and 2"):
        Store.open(str(copied))


def test_ids_take_the_smallest_type_that_holds_them():
    assert store.token_dtype(65536) == np.uint16
    assert store.token_dtype(65537) == np.uint32


def test_a_damaged_or_lost_file_is_named(copied: Path):
    """A bit flipped anywhere in the tokens, which zstd alone would decode to other tokens; then no tokens at all."""
    (file,) = copied.glob("shards/00000/train/tokens/c/0")
    content = file.read_bytes()
    for offset in range(0, len(content), max(1, len(content) // 20)):
        file.write_bytes(content[:offset] + bytes([content[offset] ^ 4]) + content[offset + 1 :])
        with pytest.raises(InputError, match=r"store .* is damaged .*; prepare it again"):
            Store.open(str(copied)).train.load()
    file.unlink()
    with pytest.raises(InputError, match=r"store .* is damaged .*missing"):
        Store.open(str(copied)).train.load()


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"format_version": 1}'])
def test_a_damaged_manifest_is_named(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged \(manifest.json"):
        Store.open(str(tmp_path))
