"""Makes a token store from a corpus, in several processes: trains the tokenizer, then tokenises.

A document is stored as its sentences; a pair as two sentences, its source and its target.

Shards of the corpus are tokenised independently, and a marker is written when one is complete. After a crash the same
command does only what is missing. The manifest is written last.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

from tqdm import tqdm

from lm import lease, storage
from lm.config import DataConfig
from lm.config.paths import expand
from lm.data import changes, corpus, files, near_duplicates, ray_workers, shard_jobs, store, workers
from lm.data.manifest import FORMAT_VERSION, SPLITS, Marker, Removed, counted, read_manifest
from lm.errors import InputError
from lm.tokenizers import tokenizer as tokenizers
from lm.tokenizers.sentencepiece_tokenizer import SAMPLE_CHARACTERS_PER_PIECE, SMALLEST, SentencePiece
from lm.tokenizers.tokenizer import Tokenizer

# The settings that decide the content of a store. A store made with other values is refused.
_SETTINGS = (
    *("source", "path", "field", "target_field", "languages"),
    *("tokenizer", "tokenizer_kind", "vocab_size", "split_digits", "heldout_fraction", "near_duplicates"),
)
_IN_PROGRESS = "preparing.json"
_SECONDS_BETWEEN_LINES = 10.0
_COUNTED: tuple[Literal["documents", "tokens"], ...] = ("documents", "tokens")
_FAR_FROM_WANTED = 0.1  # share of the tokens


def prepare(
    config: DataConfig,
    out: str,
    *,
    num_workers: int | None = None,
    runner: str = "local",
    progress: bool = True,
    tokenizer: Tokenizer | None = None,
    share_tokenizer_with: Sequence[DataConfig] = (),
) -> store.Store:
    """Makes a token store, or opens the one that is already there.

    Only one process at a time can prepare a store: others are refused.

    Args:
        config: names the text, the tokenizer and the held-out fraction.
        out: the store's folder: local, gs://... or s3://....
        num_workers: processes; by default one for each available core, of this machine or of the Ray cluster.
        runner: where shards are tokenised: `local`, or as for `ray_workers.executor`. The store's bytes are the same.
        progress: show a progress bar on stderr.
        tokenizer: used instead of `config.tokenizer`.
        share_tokenizer_with: other corpora that will use the tokenizer. A tokenizer that is trained here learns from
            equal shares of all corpora.

    Returns:
        The complete store.

    Raises:
        InputError: the corpus cannot be read or is too small; `out` is in use, or holds a store with other settings.
    """
    settings: dict[str, object] = {name: getattr(config, name) for name in _SETTINGS}
    if not config.near_duplicates:
        del settings["near_duplicates"]  # as in stores that are older than it
    if tokenizer:
        settings["tokenizer"] = tokenizer.fingerprint
    if (found := _complete(out, settings)) is not None:
        return found
    _check_new(config, out, tokenizer)
    with lease.hold(out):
        if (found := _complete(out, settings)) is not None:  # another process made it meanwhile
            return found
        listing = changes.listing(config)
        with _executors(runner, num_workers) as (here, executor):
            with workers.announced(f"reading the corpus, data.source={config.source}", progress):
                shards = corpus.shards(config, here.map)
            if not any(True for shard in shards for _ in corpus.read(shard)):
                kind = "pair" if config.pairs else "document"
                raise InputError(f"{files.named(config)} holds no {kind}; give other files.")
            corpora = [shards, *(corpus.shards(other, here.map) for other in share_tokenizer_with)]
            tokenizer = _tokenizer(config, out, settings, corpora, tokenizer, progress)
            markers, removed = _write_splits(config, out, shards, tokenizer, executor, progress)
        if not sum(marker["train"]["tokens"] for marker in markers):
            raise InputError(f"{files.named(config)} holds no token; give other files, or another data.tokenizer.")
        _say_share(config, markers)
        _say_skipped(config, markers)
        kind = "pairs" if config.pairs else "documents"
        store.finish(out, tokenizer, kind, settings, markers, removed, listing)
    return store.Store.open(out)


def _check_new(config: DataConfig, out: str, tokenizer: Tokenizer | None) -> None:
    """Refuses a folder that belongs to a run, whose tokenizer would be lost, and a tokenizer that is too small."""
    if storage.read_keys(out, ["config.json"]) != [None]:
        raise InputError(f"{out!r} is the working directory of a run; give another folder, such as {out}/store.")
    if not tokenizer and not config.tokenizer and config.vocab_size < SMALLEST:
        raise InputError(
            f"data.vocab_size is {config.vocab_size}; to train a tokenizer, give {SMALLEST} or more: for 105 special "
            "tokens, 256 bytes and pieces of the text. Or give a data.tokenizer."
        )


def _complete(out: str, settings: Mapping[str, object]) -> store.Store | None:
    """Returns the store if it is complete.

    Raises:
        InputError: it was made with other settings.
    """
    manifest = read_manifest(out)
    if manifest is None:
        return None
    _refuse_changes(out, manifest["settings"], settings)
    return store.Store.open(out)


def _say_share(config: DataConfig, markers: Sequence[Marker]) -> None:
    """Says so if the held-out share is far from the one that is asked for: documents are few, or some are very long."""
    counts = {name: {split: sum(marker[split][name] for marker in markers) for split in SPLITS} for name in _COUNTED}
    held, tokens = counts["tokens"]["heldout"], sum(counts["tokens"].values())
    if not held or abs(held / tokens - config.heldout_fraction) < _FAR_FROM_WANTED:
        return
    things = "pairs" if config.pairs else "documents"
    blank = "; in text files a blank line separates documents" if config.source == "text" else ""
    print(
        f"{counts['documents']['heldout']:,} of {sum(counts['documents'].values()):,} {things} are held out, with "
        f"{held / tokens:.0%} of the tokens (data.heldout_fraction is {config.heldout_fraction}){blank}",
        file=sys.stderr,
        flush=True,
    )


def _say_skipped(config: DataConfig, markers: Sequence[Marker]) -> None:
    if skipped := sum(marker.get("skipped", 0) for marker in markers):
        fields = " or ".join(f"data.{name}" for name in ("field", "target_field") if getattr(config, name))
        print(f"left out {counted(skipped, 'records')} with null as {fields}", file=sys.stderr, flush=True)


def as_prepared(config: DataConfig, given: Collection[str] = ()) -> DataConfig:
    """Returns the section with the settings of the store that `data.store` names, if that is complete.

    Args:
        config: of the run.
        given: names of settings, such as `data.path`, that the user has given for this run.

    Raises:
        InputError: the store was made with other values of these settings; or it is given, but neither is it there nor
            is it said what text to make it of.
    """
    manifest = read_manifest(expand(config.store)) if config.store else None
    if manifest is None:
        says_text = {"data.source", "data.path"} & set(given) or config.path or config.source != DataConfig().source
        if "data.store" in given and not says_text and _is_untouched(expand(config.store)):
            raise InputError(
                f"data.store={config.store} is no token store; correct it, make it with launch/prepare.py, or give "
                "data.source as well, to make it there."
            )
        return config
    made_with = {name: manifest["settings"].get(name, getattr(DataConfig(), name)) for name in _SETTINGS}
    wanted = {name: getattr(config, name) for name in _SETTINGS if f"data.{name}" in given}
    _refuse_changes(config.store, made_with, {**made_with, **wanted})
    return dataclasses.replace(config, **made_with)


def _is_untouched(out: str) -> bool:
    """Returns whether no store was begun in a folder."""
    return store.read_keys(out, [_IN_PROGRESS]) == [None]


@contextlib.contextmanager
def _executors(
    runner: str, num_workers: int | None
) -> Iterator[tuple[concurrent.futures.Executor, concurrent.futures.Executor]]:
    """Starts the workers of this machine, which list the corpus, and those that tokenise it: the same, or Ray's.

    What is installed, and so some corpora, differs between machines.
    """
    ray_workers.check(runner)
    is_local = runner == "local"
    with workers.executor(num_workers if is_local and num_workers else workers.available_cores()) as here:
        if is_local:
            yield here, here
        else:
            with ray_workers.executor(runner, num_workers) as there:
                yield here, there


def _refuse_changes(out: str, made_with: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    defaults = dataclasses.asdict(DataConfig())  # for a setting that is newer than the store
    made_with, wanted = {**defaults, **made_with}, {**defaults, **wanted}
    differ = [name for name in _SETTINGS if made_with[name] != wanted[name]]
    changes = [f"data.{name} ({made_with[name]!r} -> {wanted[name]!r})" for name in differ]
    back = [shlex.quote(f"--config.data.{name}={made_with[name]}") for name in differ]
    if changes:
        raise InputError(
            f"the token store {out!r} was made with other settings: {', '.join(changes)}; "
            f"change them back with {' '.join(back)}, or prepare into another folder."
        )


# --- tokenizer


def _tokenizer(
    config: DataConfig,
    out: str,
    settings: Mapping[str, object],
    corpora: list[list[corpus.Shard]],
    given: Tokenizer | None,
    progress: bool,
) -> Tokenizer:
    """Returns the tokenizer of an unfinished run for the same corpora; else the given one, or a new one."""
    digests = [shard.digest() for shards in corpora for shard in shards]
    state = json.dumps({"settings": settings, "shards": digests})
    if (unfinished := _unfinished(out, state)) is not None:
        return unfinished
    storage.delete_folder(out, "shards")
    if given:
        tokenizer = given
    elif config.tokenizer:
        tokenizer = tokenizers.load_tokenizer(config.tokenizer)
    else:
        share = -(-config.vocab_size * SAMPLE_CHARACTERS_PER_PIECE // len(corpora))
        with workers.announced(f"training a tokenizer of {config.vocab_size:,} pieces", progress):
            tokenizer = SentencePiece.train(
                (text for shards in corpora for text in _sample(shards, share)),
                vocab_size=config.vocab_size,
                kind=config.tokenizer_kind,
                split_digits=config.split_digits,
            )
        if tokenizer.vocab_size < config.vocab_size and progress:
            print(
                f"data.vocab_size is {config.vocab_size:,}, but this corpus gives no more than "
                f"{tokenizer.vocab_size:,} pieces; the tokenizer has these",
                file=sys.stderr,
            )
    _forget_tokenizers(out, tokenizer.file_name)
    store.write_key(out, tokenizer.file_name, tokenizer.to_bytes())
    in_progress = {"state": state, "file": tokenizer.file_name, "sha256": tokenizer.fingerprint}
    store.write_key(out, _IN_PROGRESS, json.dumps(in_progress).encode())
    return tokenizer


def _unfinished(out: str, state: str) -> Tokenizer | None:
    """Returns the tokenizer of an unfinished run with this state; None if there is none."""
    (content,) = store.read_keys(out, [_IN_PROGRESS])
    in_progress = json.loads(content or b"{}")
    if in_progress.get("state") != state:
        return None
    (model,) = store.read_keys(out, [in_progress["file"]])
    if model is None or hashlib.sha256(model).hexdigest() != in_progress["sha256"]:
        return None
    return tokenizers.load(model, in_progress["file"])


def _forget_tokenizers(out: str, kept: str) -> None:
    """Deletes the tokenizers of unfinished runs with other settings. `data.tokenizer` may name the store's folder."""
    for name in tokenizers.FILES:
        content, version = storage.read_version(out, name)
        if content is not None and name != kept:
            storage.write_version(out, name, None, version)


def _sample(shards: list[corpus.Shard], characters: int) -> Iterator[str]:
    """Yields sentences, or halves of pairs, from the beginning of every shard: about `characters` in all.

    The last document of a shard is taken whole, unless the shard would then have more than twice its share.
    """
    share = -(-characters // len(shards))
    for shard in shards:
        taken = 0
        for document in corpus.read(shard):
            for sentence in shard_jobs.segments(document):
                yield sentence
                taken += len(sentence)
                if taken >= 2 * share:
                    break
            if taken >= share:
                break


# --- shards


def _write_splits(
    config: DataConfig,
    out: str,
    shards: list[corpus.Shard],
    tokenizer: Tokenizer,
    executor: concurrent.futures.Executor,
    progress: bool,
) -> tuple[list[Marker], Removed | None]:
    """Tokenises the shards, again where that left a split empty; returns their markers, and what was left out."""
    threshold = round(config.heldout_fraction * shard_jobs.HASHES)
    found = None
    if config.near_duplicates:
        size = sum(shard.size for shard in shards)
        with workers.announced(f"looking for near-duplicates in {size:,} bytes", progress):
            found = near_duplicates.find(config.near_duplicates, out, shards, executor.map)
        shards = found.kept()
    markers = _write_shards(out, shards, tokenizer, threshold, executor, progress)
    while config.heldout_fraction and (other := _other_threshold(markers, threshold, config)) != threshold:
        threshold = other
        markers = _write_shards(out, shards, tokenizer, threshold, executor, progress)
    if found is None:
        return markers, None
    removed = found.report(out, threshold, executor.map)
    near_duplicates.forget(out)
    return markers, removed


def _write_shards(
    out: str,
    shards: list[corpus.Shard],
    tokenizer: Tokenizer,
    threshold: int,
    executor: concurrent.futures.Executor,
    progress: bool,
) -> list[Marker]:
    """Tokenises the shards that are not complete yet; returns the markers of all shards, in order."""
    jobs = []
    for index, shard in enumerate(shards):
        decided_by = f"{FORMAT_VERSION} {shard.digest()} {tokenizer.fingerprint} {threshold}"
        digest = hashlib.sha256(decided_by.encode()).hexdigest()
        jobs.append(shard_jobs.Job(out, index, shard, digest, threshold, tokenizer.file_name, tokenizer.fingerprint))
    found = store.read_keys(out, [store.marker_name(job.index) for job in jobs])
    complete: dict[int, Marker] = {job.index: json.loads(text) for job, text in zip(jobs, found, strict=True) if text}
    missing = [job for job in jobs if job.index not in complete or complete[job.index]["digest"] != job.digest]
    total = sum(shard.size for shard in shards)
    initial = total - sum(job.shard.size for job in missing)
    done, tokens, begun = initial, 0, time.monotonic()
    said = begun
    on_terminal = sys.stderr.isatty()  # in a log a bar would be one endless line
    bar = tqdm(
        total=total,
        initial=initial,
        unit="B",
        unit_scale=True,
        desc="tokenise",
        disable=not (progress and on_terminal),
    )
    with bar, workers.announced(f"tokenising {total:,} bytes", progress and not on_terminal):
        futures = {executor.submit(shard_jobs.write, job): job for job in missing}
        for future in concurrent.futures.as_completed(futures):
            job = futures[future]
            complete[job.index] = marker = future.result()
            done += job.shard.size
            tokens += sum(marker[split]["tokens"] for split in SPLITS)
            rate = f"{tokens / (time.monotonic() - begun):,.0f} tokens a second"
            bar.set_postfix_str(rate, refresh=False)
            bar.update(job.shard.size)
            if progress and not on_terminal and time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                print(f"tokenising: {done:,} of {total:,} bytes, {rate}", file=sys.stderr, flush=True)
                said = time.monotonic()
    return [complete[job.index] for job in jobs]


# --- held-out split


def _other_threshold(markers: list[Marker], threshold: int, config: DataConfig) -> int:
    """Returns the threshold of the held-out split: a document with a hash below it is held out.

    It is another one if the given threshold leaves a split empty, which happens to corpora of a few documents. Then one
    document moves: that with the lowest hash is held out, or that with the highest hash is not.
    """
    documents = {split: sum(marker[split]["documents"] for marker in markers) for split in SPLITS}
    if all(documents.values()):
        return threshold
    lowest = min(marker["lowest_hash"] for marker in markers)
    highest = max(marker["highest_hash"] for marker in markers)
    if (count := sum(documents.values())) and lowest == highest:
        one = "the pairs of one source" if config.pairs else "one document"
        equal = "" if config.pairs or count == 1 else f", {count:,} times"
        raise InputError(
            f"{files.named(config)} holds only {one}{equal}, so none can be held out; give more (in text files a "
            "blank line separates them), or set data.heldout_fraction=0."
        )
    return lowest + 1 if not documents["heldout"] else highest
