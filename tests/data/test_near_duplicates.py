"""Planted duplicates and leaks are found at the rate that the similarity promises, and nothing else is left out."""

import dataclasses
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest

from lm.config import DataConfig
from lm.data import corpus, minhash, near_duplicates, prepare, store
from lm.data.pairs import Pair
from lm.data.store import Store
from lm.errors import InputError
from tests.data.test_prepare import contents, texts

LANGUAGES = ("english", "chinese")
_LETTERS = random.Random(1)
WORDS = ["".join(_LETTERS.choices("abcdefghijklmnopqrstuvwxyz", k=_LETTERS.randint(2, 9))) for _ in range(3000)]


def make_text(language: str, random_: random.Random, words: int = 120) -> str:
    """Random words of a vocabulary of 3,000, as a text of some sentences."""
    if language == "chinese":
        characters = [chr(0x4E00 + random_.randrange(3000)) + "，。 "[random_.randrange(3)] for _ in range(words)]
        return "".join(characters).strip()
    return " ".join(random_.choice(WORDS) + random_.choice(["", "", ",", "."]) for _ in range(words))


def edited(text: str, language: str, edits: int, random_: random.Random) -> str:
    """The text with some of its words or characters replaced."""
    parts = list(text) if language == "chinese" else text.split(" ")
    for at in random_.sample(range(len(parts)), edits):
        parts[at] = "replaced" if language == "english" else "龘"
    return ("" if language == "chinese" else " ").join(parts)


def jaccard(first: str, second: str) -> float:
    """The similarity by its definition: sets of shingles, character by character."""
    sets = []
    for text in (first, second):
        characters = [character for character in text.lower() if character.isalnum()]
        suffixes = ["".join(characters[at:]).encode() for at in range(len(characters))]
        sets.append({suffix[:15] for suffix in suffixes if len(suffix) >= 15})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def edited_pairs(language: str, count: int, edits: list[int]) -> list[tuple[str, str]]:
    random_ = random.Random(language)
    found = []
    for _ in range(count):
        text = make_text(language, random_)
        found.append((text, edited(text, language, random_.choice(edits), random_)))
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_equal_numbers_of_two_signatures_estimate_the_similarity(language: str):
    pairs = edited_pairs(language, 60, [0, 1, 2, 5, 10, 30])
    first, second = (minhash.signatures(side) for side in zip(*pairs, strict=True))
    estimated = (first == second).mean(axis=0)
    exact = np.array(list(itertools.starmap(jaccard, pairs)))
    assert exact.min() < 0.2
    assert (estimated[exact == 1] == 1).all()
    deviation = np.sqrt(exact * (1 - exact) / minhash.HASHES)
    assert (np.abs(estimated - exact) <= 4 * deviation).all()
    assert abs((estimated - exact).mean()) < 4 * np.sqrt((deviation**2).sum()) / len(pairs)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("edits", [2, 4, 8])
def test_pairs_are_found_at_the_rate_of_their_similarity(language: str, edits: int):
    pairs = edited_pairs(language, 150, [edits])
    bands, rows = minhash.banding(0.8)
    first, second = (minhash.keys(side, bands, rows) for side in zip(*pairs, strict=True))
    found = (first == second).any(axis=0)
    expected = np.array([minhash.chance(jaccard(*pair), bands, rows) for pair in pairs])
    assert abs(found.mean() - expected.mean()) < 4 * np.sqrt((expected * (1 - expected)).sum()) / len(pairs) + 0.01


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_the_threshold_is_where_nine_of_ten_are_found(threshold: float):
    bands, rows = minhash.banding(threshold)
    assert bands * rows <= minhash.HASHES
    assert minhash.chance(threshold, bands, rows) >= 0.9
    assert minhash.chance(threshold - 0.35, bands, rows) < 0.15


def test_keys_do_not_depend_on_what_else_is_asked():
    random_ = random.Random(0)
    asked = [make_text(random_.choice(LANGUAGES), random_, random_.choice([1, 3, 50, 5000])) for _ in range(60)]
    asked += ["", "!?", "…", "a", "é", "天地玄黄宇", "x" * 300_000]
    together = minhash.keys(asked, 16, 8)
    alone = np.concatenate([minhash.keys([text], 16, 8) for text in asked], axis=1)
    assert np.array_equal(together, alone)
    for row in together:
        assert len(set(row.tolist())) == len(asked)
    assert minhash.keys([], 16, 8).shape == (16, 0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Open the file.\nThen read it!", "open the FILE, then read it"),
        ("天地玄黄，宇宙洪荒。", "天地玄黄\n宇宙洪荒"),
        ("ＡＢＣ caf\u0065\u0301", "abc caf\u00e9"),
        ("***", "***"),
    ],
)
def test_case_spaces_and_punctuation_do_not_count(first: str, second: str):
    assert np.array_equal(minhash.signatures([first]), minhash.signatures([second]))


def test_the_lowest_of_those_that_keys_link_stays(rng: np.random.Generator):
    hashes = rng.integers(0, 40, 60).astype(np.uint64)  # some are equal
    keys = rng.integers(0, 80, (5, 60)).astype(np.uint64)
    expected = [
        min((int(hashes[other]), other) for other in range(60) if (keys[:, other] == keys[:, one]).any())[1]
        for one in range(60)
    ]
    while (further := [expected[other] for other in expected]) != expected:  # what stays for one that is left out
        expected = further
    assert near_duplicates.originals(hashes, keys).tolist() == expected
    assert near_duplicates.originals(hashes[:0], keys[:, :0]).tolist() == []


# --- whole corpora

HELDOUT = 1 << 63  # hash below which a document is held out, at a fraction of a half


@dataclasses.dataclass
class Planted:
    """A corpus with planted copies.

    Attributes:
        documents: all of them, in a random order.
        unrelated: the documents that others are copies of, or that have no copy.
        duplicates: near-copies of training documents, and of held-out ones that fell into the held-out split.
        leaks: near-copies of held-out documents that fell into the training split, and their originals.
    """

    documents: list[str]
    unrelated: set[str]
    duplicates: set[str]
    leaks: dict[str, str]


@pytest.fixture(scope="module")
def planted() -> Planted:
    random_ = random.Random(2)
    found = Planted([], set(), set(), {})
    for language in LANGUAGES:
        originals = [make_text(language, random_) for _ in range(150)]
        for number, text in enumerate(originals):
            found.unrelated.add(text)
            if number >= 60:
                continue
            copies = [text.upper() + "!"] if number % 2 and language == "english" else []
            copies += [edited(text, language, 1, random_)]
            kept, *others = sorted([text, *copies], key=corpus.split_hash)
            found.unrelated.discard(text)
            found.unrelated.add(kept)
            for copy in others:
                if corpus.split_hash(kept) < HELDOUT <= corpus.split_hash(copy):
                    found.leaks[copy] = kept
                else:
                    found.duplicates.add(copy)
    found.documents = [*found.unrelated, *found.duplicates, *found.leaks]
    found.documents.sort()
    random_.shuffle(found.documents)
    assert min(len(found.leaks), len(found.duplicates)) > 40
    return found


def config_of(path: Path, documents: list[str]) -> DataConfig:
    lines = (json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents)
    path.write_text("".join(lines), encoding="utf-8")
    return DataConfig(source="jsonl", path=str(path), heldout_fraction=0.5, near_duplicates=0.8)


def make(config: DataConfig, out: Path, tokenizer: Store) -> Store:
    return prepare.prepare(config, str(out), num_workers=1, progress=False, tokenizer=tokenizer.tokenizer)


def as_stored(made: Store, documents: set[str]) -> list[str]:
    """Documents as a tokenizer gives them back, without spaces."""
    encoded = made.tokenizer.encode(sorted(documents))
    return sorted(made.tokenizer.decode(ids).replace(" ", "") for ids in encoded)


def stored(made: Store) -> dict[str, list[str]]:
    splits = {"train": made.train, "heldout": made.heldout}
    return {name: sorted(text.replace(" ", "") for text in texts(made, split)) for name, split in splits.items()}


def test_planted_duplicates_and_leaks_are_left_out_counted_and_listed(
    planted: Planted, made: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(corpus, "_SMALLEST_SHARD", 1 << 14)
    cleaned = make(config_of(tmp_path / "a.jsonl", planted.documents), tmp_path / "store", made)
    assert len(cleaned.manifest["shards"]) > 5
    assert cleaned.manifest.get("removed") == {
        "near_duplicates": len(planted.duplicates),
        "heldout_leaks": len(planted.leaks),
    }
    found = stored(cleaned)
    heldout = {text for text in planted.unrelated if corpus.split_hash(text) < HELDOUT}
    assert found == {
        "train": as_stored(cleaned, planted.unrelated - heldout),
        "heldout": as_stored(cleaned, heldout),
    }
    lines = [json.loads(line) for line in (tmp_path / "store" / "leaks.jsonl").read_text().splitlines()]
    shards = [list(corpus.read(shard)) for shard in corpus.shards(config_of(tmp_path / "a.jsonl", planted.documents))]
    assert {shards[line["shard"]][line["document"]] for line in lines} == set(planted.leaks)
    beginnings = {(leak[:200], kept[:200]) for leak, kept in planted.leaks.items()}
    assert {(line["text"], line["heldout"]) for line in lines} == beginnings
    assert len(lines) == len(planted.leaks)


def test_the_order_of_the_corpus_does_not_matter(planted: Planted, made: Store, tmp_path: Path):
    kept = [
        stored(make(config_of(tmp_path / f"{name}.jsonl", documents), tmp_path / name, made))
        for name, documents in (("forward", planted.documents), ("backward", planted.documents[::-1]))
    ]
    assert kept[0] == kept[1]


def test_a_broken_run_goes_on_with_the_keys_that_it_has(
    planted: Planted, made: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = config_of(tmp_path / "a.jsonl", planted.documents)
    unbroken = make(config, tmp_path / "unbroken", made)
    with monkeypatch.context() as patch:
        patch.setattr(prepare.shard_jobs, "write", lambda job: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(config, tmp_path / "broken", made)
    assert (tmp_path / "broken" / near_duplicates.FOLDER).exists()
    monkeypatch.setattr(minhash, "keys", None)
    assert make(config, tmp_path / "broken", made).manifest == unbroken.manifest
    assert contents(tmp_path / "broken") == contents(tmp_path / "unbroken")
    assert not list((tmp_path / "broken").glob(f"{near_duplicates.FOLDER}/*"))


def test_a_store_without_the_setting_is_as_before(planted: Planted, made: Store, tmp_path: Path):
    config = dataclasses.replace(config_of(tmp_path / "a.jsonl", planted.documents[:50]), near_duplicates=0.0)
    whole = make(config, tmp_path / "store", made)
    assert "near_duplicates" not in whole.manifest["settings"]
    assert not {"removed"} & whole.manifest.keys()
    assert not (tmp_path / "store" / "leaks.jsonl").exists()
    assert make(config, tmp_path / "store", made).manifest == whole.manifest
    with pytest.raises(InputError, match=r"data.near_duplicates \(0.0 -> 0.8\)"):
        make(dataclasses.replace(config, near_duplicates=0.8), tmp_path / "store", made)


def test_pairs_are_compared_with_both_halves(made: Store, tmp_path: Path):
    random_ = random.Random(3)
    lines = [(make_text("english", random_, 5), make_text("chinese", random_, 30)) for _ in range(40)]
    copies = [(source.upper(), target) for source, target in lines[:10]]
    other_targets = [(source, make_text("chinese", random_, 60)) for source, _ in lines[10:20]]
    file = tmp_path / "a.tsv"
    file.write_text("".join(f"{a}\t{b}\n" for a, b in [*lines, *copies, *other_targets]), encoding="utf-8")
    cleaned = make(DataConfig(source="tsv", path=str(file), near_duplicates=0.8), tmp_path / "store", made)
    assert sum(split["documents"] for split in cleaned.manifest["splits"].values()) == 50
    removed = cleaned.manifest.get("removed")
    assert removed
    assert removed["near_duplicates"] + removed["heldout_leaks"] == 10


def test_a_shard_without_a_document_has_no_keys(tmp_path: Path):
    shards = [
        corpus.Shard("gettext", texts=tuple(Pair(f"source {i}", f"target {i}") for i in numbers), size=9)
        for numbers in ([1, 2], [3, 1])
    ]
    (tmp_path / "empty.txt").write_text("\n")
    shards.insert(1, corpus.Shard("text", (str(tmp_path / "empty.txt"),)))
    found = near_duplicates.find(0.8, str(tmp_path), shards, map)
    assert [len(list(corpus.read(shard))) for shard in found.kept()] == [2, 0, 1]
    assert found.report(str(tmp_path), 0, map) == {"near_duplicates": 1, "heldout_leaks": 0}
    nothing = near_duplicates.find(0.8, str(tmp_path / "nothing"), shards[1:2], map)
    assert [len(list(corpus.read(shard))) for shard in nothing.kept()] == [0]
    assert nothing.report(str(tmp_path), 0, map) == {"near_duplicates": 0, "heldout_leaks": 0}
    near_duplicates.forget(str(tmp_path))
    assert not store.read_keys(str(tmp_path), [f"{near_duplicates.FOLDER}/00000.json"])[0]


@pytest.mark.parametrize("value", [-0.1, 0.3, 1.5, float("nan")])
def test_a_similarity_that_says_nothing_is_refused(value: float):
    with pytest.raises(InputError, match=r"data\.near_duplicates is"):
        DataConfig(near_duplicates=value).validate()
