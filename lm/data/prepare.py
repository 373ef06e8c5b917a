"""Corpus -> tokenizer -> token store, over processes, and resumable.

A document is stored as its sentences, a pair as two: its source and its target.

Shards of the corpus are tokenised independently, each complete by its own marker, so a run that was
killed goes on with what is missing when the same command is given again. The manifest comes last.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from lm import lease, storage
from lm.config import DataConfig
from lm.data import corpus, store
from lm.data import tokenizer as tokenizers
from lm.data.pairs import Pair
from lm.data.sentencepiece_tokenizer import SAMPLE_CHARACTERS_PER_PIECE, SentencePiece
from lm.data.sentences import sentences
from lm.data.tokenizer import Tokenizer
from lm.errors import InputError

# What the content of a store depends on; a store made with other values is refused by name.
_SETTINGS = (
    *("source", "path", "field", "target_field", "languages"),
    *("tokenizer", "tokenizer_kind", "vocab_size", "split_digits", "heldout_fraction"),
)
_IN_PROGRESS = "preparing.json"
_BATCH_CHARACTERS = 1 << 20  # encoded at once: bounds the memory of a worker
_HASHES = 1 << 64


def prepare(
    config: DataConfig,
    out: str,
    *,
    num_workers: int | None = None,
    progress: bool = True,
    tokenizer: Tokenizer | None = None,
    share_tokenizer_with: Sequence[DataConfig] = (),
) -> store.Store:
    """Makes the token store, or opens the one that is already there.

    Several processes cannot prepare the same store at once: the second is refused.

    Args:
        config: where the text is, which tokenizer, what share is held out.
        out: the store's folder: local, gs://... or s3://....
        num_workers: processes; by default one for each available core.
        progress: show a bar on stderr.
        tokenizer: to use in place of `config.tokenizer`.
        share_tokenizer_with: other texts that are going to use the tokenizer; one that is trained here learns from
            equal shares of all.

    Returns:
        The complete store.

    Raises:
        InputError: the corpus cannot be read or is too small, or `out` is in use or holds a store made otherwise.
    """
    settings = {name: getattr(config, name) for name in _SETTINGS}
    if tokenizer:
        settings["tokenizer"] = tokenizer.fingerprint
    manifest = store.read_manifest(out)
    if manifest is not None:
        _refuse_changes(out, manifest["settings"], settings)
        return store.Store.open(out)
    num_workers = num_workers or available_cores()
    with lease.hold(out), _executor(num_workers) as executor:
        shards = corpus.shards(config, executor.map)
        if not any(True for shard in shards for _ in corpus.read(shard)):
            kind = "pair" if config.pairs else "document"
            raise InputError(f"data.path={config.path!r} (data.source={config.source}) holds no {kind}.")
        corpora = [shards, *(corpus.shards(other, executor.map) for other in share_tokenizer_with)]
        tokenizer = _tokenizer(config, out, settings, corpora, tokenizer)
        threshold = round(config.heldout_fraction * _HASHES)
        markers = _write_shards(out, shards, tokenizer, threshold, executor, progress)
        while config.heldout_fraction and (other := _other_threshold(markers, threshold, config)) != threshold:
            threshold = other
            markers = _write_shards(out, shards, tokenizer, threshold, executor, progress)
    if not sum(marker["train"]["tokens"] for marker in markers):
        raise InputError(f"data.path={config.path!r} (data.source={config.source}) holds no token.")
    store.finish(out, tokenizer, "pairs" if config.pairs else "documents", settings, markers)
    return store.Store.open(out)


def _refuse_changes(out: str, made_with: dict[str, Any], wanted: dict[str, Any]) -> None:
    made_with = {**dataclasses.asdict(DataConfig()), **made_with}  # a setting newer than the store had its default
    changes = [
        f"data.{name} ({made_with[name]!r} -> {wanted[name]!r})"
        for name in _SETTINGS
        if made_with[name] != wanted[name]
    ]
    if changes:
        raise InputError(
            f"the token store {out!r} was made with other settings: {', '.join(changes)}; "
            "change them back, or prepare into another folder."
        )


# --- processes


def available_cores() -> int:
    """Those that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only; knows the limits of a container or job
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextlib.contextmanager
def _executor(num_workers: int) -> Iterator[concurrent.futures.Executor]:
    """Worker processes, or one thread for one worker.

    Processes are spawned, never forked: the parent may hold JAX's threads or an accelerator.
    """
    if num_workers == 1:
        executor: concurrent.futures.Executor = concurrent.futures.ThreadPoolExecutor(1)
    else:
        context = multiprocessing.get_context("spawn")
        executor = concurrent.futures.ProcessPoolExecutor(num_workers, context, initializer=_start_worker)
    try:
        yield executor
    except concurrent.futures.BrokenExecutor as error:
        raise RuntimeError("a worker process died, perhaps for want of memory; run again to go on.") from error
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Keeps this worker to one core, and ends it when its parent is killed: it would write on, or wait for ever."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


# --- tokenizer


def _tokenizer(
    config: DataConfig,
    out: str,
    settings: dict[str, Any],
    corpora: list[list[corpus.Shard]],
    given: Tokenizer | None,
) -> Tokenizer:
    """The tokenizer of an earlier, unfinished run for the same corpora; else the given or a new one."""
    digests = [shard.digest() for shards in corpora for shard in shards]
    state = json.dumps({"settings": settings, "shards": digests}).encode()
    for name in ("tokenizer.model", "tokenizer.json"):
        in_progress, model = store.read_keys(out, [_IN_PROGRESS, name])
        if in_progress == state and model is not None:
            return tokenizers.load(model, name)
    storage.delete_folder(out, "shards")
    if given:
        tokenizer = given
    elif config.tokenizer:
        tokenizer = tokenizers.load_tokenizer(config.tokenizer)
    else:
        share = -(-config.vocab_size * SAMPLE_CHARACTERS_PER_PIECE // len(corpora))
        tokenizer = SentencePiece.train(
            (text for shards in corpora for text in _sample(shards, share)),
            vocab_size=config.vocab_size,
            kind=config.tokenizer_kind,
            split_digits=config.split_digits,
        )
    store.write_key(out, tokenizer.file_name, tokenizer.to_bytes())
    store.write_key(out, _IN_PROGRESS, state)
    return tokenizer


def _sample(shards: list[corpus.Shard], characters: int) -> Iterator[str]:
    """Sentences, or halves of pairs, from the beginning of every shard, about `characters` in all."""
    share = -(-characters // len(shards))
    for shard in shards:
        taken = 0
        for document in corpus.read(shard):
            for sentence in _segments(document):
                yield sentence
                taken += len(sentence)
            if taken >= share:
                break


def _segments(document: str | Pair) -> list[str]:
    """What is stored of a document or a pair."""
    return [document.source, document.target] if isinstance(document, Pair) else sentences(document)


# --- shards


class _Job(NamedTuple):
    out: str
    index: int
    shard: corpus.Shard
    digest: str
    threshold: int
    tokenizer_name: str
    tokenizer_fingerprint: str


def _write_shards(
    out: str,
    shards: list[corpus.Shard],
    tokenizer: Tokenizer,
    threshold: int,
    executor: concurrent.futures.Executor,
    progress: bool,
) -> list[dict[str, Any]]:
    """Tokenises the shards that are not complete yet; returns the markers of all, in order."""
    jobs = []
    for index, shard in enumerate(shards):
        digest = hashlib.sha256(f"{shard.digest()} {tokenizer.fingerprint} {threshold}".encode()).hexdigest()
        jobs.append(_Job(out, index, shard, digest, threshold, tokenizer.file_name, tokenizer.fingerprint))
    found = store.read_keys(out, [store.marker_name(job.index) for job in jobs])
    markers = [json.loads(content) if content else {} for content in found]
    missing = [job for job in jobs if markers[job.index].get("digest") != job.digest]
    total = sum(shard.size for shard in shards)
    initial = total - sum(job.shard.size for job in missing)
    bar = tqdm(
        total=total,
        initial=initial,
        unit="B",
        unit_scale=True,
        desc="tokenise",
        disable=not progress,
        mininterval=0.1 if sys.stderr.isatty() else 10,  # seconds; a log need not move
    )
    with bar:
        futures = {executor.submit(_write_shard, job): job for job in missing}
        for future in concurrent.futures.as_completed(futures):
            job = futures[future]
            markers[job.index] = future.result()
            bar.update(job.shard.size)
    return markers


def _write_shard(job: _Job) -> dict[str, Any]:
    """Runs in a worker: reads, tokenises and writes one shard."""
    tokenizer = _load_tokenizer(job.out, job.tokenizer_name, job.tokenizer_fingerprint)
    parts: dict[str, list[store.Text]] = {split: [] for split in store.SPLITS}
    hashes: list[int] = []
    for batch in _batches_of(corpus.read(job.shard)):
        segmented: dict[str, list[list[str]]] = {split: [] for split in store.SPLITS}
        for document in batch:
            hashes.append(_hash(document))
            segmented["heldout" if hashes[-1] < job.threshold else "train"].append(_segments(document))
        for split, found in segmented.items():
            parts[split].append(_encode(tokenizer, found))
            if isinstance(batch[0], Pair):
                _refuse_halves(tokenizer, parts[split][-1], found)
    splits = {split: _concatenate(texts) for split, texts in parts.items()}
    extra = {"digest": job.digest, "lowest_hash": min(hashes, default=_HASHES), "highest_hash": max(hashes, default=-1)}
    return store.write_shard(job.out, job.index, splits, tokenizer.vocab_size, extra)


@functools.lru_cache(maxsize=1)
def _load_tokenizer(out: str, name: str, fingerprint: str) -> Tokenizer:
    (model,) = store.read_keys(out, [name])
    if model is None:
        raise RuntimeError(f"{out}/{name} vanished while the store was being made.")
    tokenizer = tokenizers.load(model, name)
    assert tokenizer.fingerprint == fingerprint, "the tokenizer changed while the store was being made"
    return tokenizer


def _batches_of(documents: Iterator[str | Pair]) -> Iterator[list[str | Pair]]:
    batch: list[str | Pair] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document) if isinstance(document, str) else len(document.source) + len(document.target)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, documents: list[list[str]]) -> store.Text:
    """Encodes segmented documents; a sentence or document without any token is dropped."""
    ids = tokenizer.encode([sentence for document in documents for sentence in document])
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    document_of = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    document_lengths = np.bincount(document_of[lengths > 0], minlength=len(documents))
    return store.Text(
        np.concatenate(ids) if ids else np.zeros(0, np.int32),
        lengths[lengths > 0],
        document_lengths[document_lengths > 0],
    )


def _refuse_halves(tokenizer: Tokenizer, text: store.Text, pairs: list[list[str]]) -> None:
    """An imported tokenizer may have no token for a text; of a pair both halves need some."""
    if len(text.sentence_lengths) != 2 * len(pairs):
        source, target = next(pair for pair in pairs if not all(map(len, tokenizer.encode(pair))))
        raise InputError(
            f"the tokenizer has no token for one half of the pair {source[:80]!r}, {target[:80]!r}; remove the pair, "
            "or use another data.tokenizer."
        )


def _concatenate(texts: list[store.Text]) -> store.Text:
    columns = zip(*((text.tokens, text.sentence_lengths, text.document_lengths) for text in texts), strict=True)
    arrays = [np.concatenate(column) for column in columns] or [np.zeros(0, np.int32)] * 3
    return store.Text(*arrays)


# --- held-out split


def _hash(document: str | Pair) -> int:
    """64 bits of the text (of a pair's group) alone, so it stays in its split however the corpus is cut."""
    text = document if isinstance(document, str) else document.group or document.source
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _other_threshold(markers: list[dict[str, Any]], threshold: int, config: DataConfig) -> int:
    """The threshold below which a document is held out, moved if it leaves a split empty.

    That happens to corpora of a few documents only: then the one with the lowest hash is held out
    (or, where all were, all but the one with the highest).
    """
    documents = {split: sum(marker[split]["documents"] for marker in markers) for split in store.SPLITS}
    if all(documents.values()):
        return threshold
    lowest = min(marker["lowest_hash"] for marker in markers)
    highest = max(marker["highest_hash"] for marker in markers)
    if sum(documents.values()) and lowest == highest:
        one = "the pairs of one source" if config.pairs else "one document"
        raise InputError(
            f"data.path={config.path!r} holds {one} only, so none can be held out; give more (in text files a "
            "blank line separates them), or set data.heldout_fraction=0."
        )
    return lowest + 1 if not documents["heldout"] else highest
