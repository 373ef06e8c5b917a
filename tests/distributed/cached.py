"""Runs a script in which every process writes to the compile cache: python -m tests.distributed.cached SCRIPT ...

JAX lets only the first process write to the compile cache. On CPU the other processes need entries of their own, and
would compile everything at every start.
"""

import os
import runpy
import sys
from typing import Any

from jax._src import compiler, distributed

_write = compiler._cache_write


def _write_whoever(*arguments: Any) -> None:
    state = distributed.global_state
    index, state.process_id = state.process_id, 0
    try:
        _write(*arguments)
    finally:
        state.process_id = index


if __name__ == "__main__":
    compiler._cache_write = _write_whoever
    del sys.argv[0]
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
