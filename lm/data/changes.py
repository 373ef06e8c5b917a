"""Tells whether the files of a corpus have changed since a token store was made of them.

A complete store is opened without its corpus. So the store keeps what the file system said of the files when they were
read, and this is compared with what it says now. No file is opened.
"""

import dataclasses
import hashlib
import json
import os

from lm import storage
from lm.config import DataConfig
from lm.data import catalogues, corpus, files
from lm.data.manifest import Listing, Manifest
from lm.errors import InputError

_SUFFIXES = {**corpus.SUFFIXES, "gettext": catalogues.SUFFIXES}


def listing(config: DataConfig) -> Listing | None:
    """Returns what the file system says of the files of a corpus.

    None where this machine has none of them, where no path is given, and for object storage, which takes a request a
    file.
    """
    if config.source not in _SUFFIXES or not config.path or storage.is_remote(config.path):
        return None
    try:
        found = [(path, os.stat(path)) for path in files.paths(config, _SUFFIXES[config.source])]
    except (InputError, OSError):
        return None
    facts = [(path, status.st_size, int(status.st_mtime)) for path, status in found]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return {"files": len(facts), "bytes": sum(size for _, size, _ in facts), "digest": digest}


def since(manifest: Manifest) -> str:
    """Returns how the files of a store's corpus have changed since it was made; empty if they have not.

    It is empty, too, where nothing is known: the store is older than this record, or the files are not here.
    """
    settings = {name: value for name, value in manifest["settings"].items() if name in ("source", "path")}
    then, now = manifest.get("listing"), listing(dataclasses.replace(DataConfig(), **settings))
    if then is None or now is None or then == now:
        return ""
    if (then["files"], then["bytes"]) == (now["files"], now["bytes"]):
        return "a file has another name or modification time"
    before, after = (f"{each['files']:,} file(s) of {each['bytes']:,} bytes" for each in (then, now))
    return f"{before} then, {after} now"
