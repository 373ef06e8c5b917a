"""What every test runs under: an environment, which its subprocesses inherit, and memory that each module frees."""

import ctypes
import gc
import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "tests" / "peers"
SKIPPED = "needs --peers"

# Compiles most programs in half the time. jaxlib 0.11.1 and later refuse the flag, and so does libtpu, which reads
# the same variable: a process that is given an unknown flag aborts.
ONLY_CPUS = "--xla_cpu_use_fusion_emitters=false" if Version(version("jaxlib")) < Version("0.11.1") else ""

gc.set_threshold(100_000, 20, 100)  # as lm.cli does: tests of models take a seventh less CPU time

LARGE = 3 * 2**28  # bytes of a worker from which on it frees what it can; the largest test alone takes 3.1 GB

# JAX reads these when it is first imported, which is after this file.
os.environ.update(
    JAX_PLATFORMS="cpu",
    # Eight devices. Most of the suite's time is the compiler's, and most of that is for programs that run longer.
    XLA_FLAGS="--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    f"--xla_llvm_disable_expensive_passes=true {ONLY_CPUS}",
    JAX_NUMPY_RANK_PROMOTION="raise",
    JAX_COMPILATION_CACHE_DIR=str(ROOT / ".jax_cache"),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    HF_HUB_OFFLINE="1",  # a comparison builds its reference or finds it installed; it never downloads one
    MPLBACKEND="agg",
)


@pytest.fixture(autouse=True, scope="module")
def free_memory() -> Iterator[None]:
    """Frees what the programs of earlier modules hold, once a worker is large.

    JAX caches every program that it has compiled, and glibc keeps what is freed in pieces. A worker would grow by some
    hundred megabytes a module, to over 6 GB. Programs that are cleared are traced again, so a small worker keeps them.
    """
    yield
    if "jax" in sys.modules and resident_bytes() > LARGE:
        sys.modules["jax"].clear_caches()
        gc.collect()
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc's own
            libc.malloc_trim(0)


def resident_bytes() -> int:
    """The memory of this process; more than any machine has where the system does not say it."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else sys.maxsize


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--peers", action="store_true", help="also compare with transformers (the [peers] extra)")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without --peers their folder is not even imported: torch and transformers may not be installed."""
    return True if collection_path.is_relative_to(PEERS) and not config.getoption("--peers") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--peers"):
        return
    for item in items:
        if item.get_closest_marker("peers"):
            item.add_marker(pytest.mark.skip(reason=SKIPPED))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--peers"):
        return
    functions = sum(len(re.findall(r"^def test_", path.read_text(), re.M)) for path in PEERS.rglob("test_*.py"))
    elsewhere = sum(SKIPPED in str(report.longrepr) for report in terminalreporter.stats.get("skipped", []))
    if count := functions + elsewhere:
        terminalreporter.write_line(
            f"{count} comparisons with transformers skipped; add them with: bash launch/test.sh --peers"
        )
