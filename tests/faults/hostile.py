"""What clients do to a server, thousands of times: python -m tests.faults.hostile --folder=DIR --schemathesis=PATH

DIR is that of `tests.benchmarks.serving`; PATH is the program of an environment that has schemathesis (`pip install
schemathesis`). Requests are made from /openapi.json by schemathesis, and raw bodies by hypothesis. Then clients read
slowly, leave in the middle of a stream, send half a request, and send 100 MB. After each, nothing may be left in the
queue, in a slot or in the memory, and no status may say that the server itself failed.
"""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags

from tests.faults.clients import half_requests, large_bodies, leaving, left, raw_bodies, slow_readers
from tests.faults.served import Server, report

_folder = flags.DEFINE_string("folder", None, "The models and texts of tests.benchmarks.serving.", required=True)
_schemathesis = flags.DEFINE_string("schemathesis", None, "The program; without it this part is left out.")
_examples = flags.DEFINE_integer("examples", 100, "Requests of schemathesis for each route and phase.")
_bodies = flags.DEFINE_integer("bodies", 3000, "Raw bodies of hypothesis.")


def from_the_description(server: Server) -> str:
    """Requests that schemathesis makes from /openapi.json."""
    command = [_schemathesis.value, "run", f"http://127.0.0.1:{server.port}/openapi.json"]
    command += ["--checks", "not_a_server_error", "--max-examples", str(_examples.value), "--workers", "4"]
    command += ["--exclude-path", "/admin/reload", "--continue-on-failure", "--request-timeout", "60"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.strip() for line in done.stdout.splitlines() if "generated" in line or "Server error" in line]
    return "; ".join(lines)[-300:] or done.stdout[-300:] + done.stderr[-300:]


def raw(server: Server) -> str:
    """Raw bodies of hypothesis."""
    return str(raw_bodies(server, _bodies.value))


def main(argv: list[str]) -> None:
    del argv
    folder = Path(_folder.value).absolute()
    models = f"embed={folder / 'embed'},generate={folder / 'tiny'}"
    flags_ = ("--tasks=embed,generate", "--beams=1,2", "--max_length=64", f"--compilation_cache={folder / 'cache'}")
    server = Server(models, *flags_, "--drain_seconds=0")
    parts: list[Callable[[Server], str]] = [raw, slow_readers, leaving, half_requests, large_bodies, raw]
    parts = ([from_the_description] if _schemathesis.value else []) + parts
    _, _, files = left(server)
    holds, memory = True, []
    for part in parts:
        begun, said = time.monotonic(), part(server)
        queue, slots, open_files = left(server)
        memory.append(round(server.megabytes()))
        failures = int(server.metrics().get("requests_500", 0)), server.log().count("failed")
        facts: list[tuple[str, Any, bool]] = [
            (f"done in {time.monotonic() - begun:.0f} s", said, True),
            ("answers with status 500, and failures in the log", failures, not any(failures)),
            ("left in queue, slots", (queue, slots), not queue and not slots),
            ("open files", open_files, open_files < files + 20),
            ("health", server.status("/health"), server.status("/health") == 200),
        ]  # fmt: skip
        holds &= report(part.__name__, facts)
    metrics = server.metrics()
    print({name: int(count) for name, count in metrics.items() if name.startswith("requests_")}, flush=True)
    compiled, growth = metrics["lm_compilations_total"], memory[-1] - memory[-2]  # the second time that hypothesis asks
    holds &= report(
        "hostile",
        [
            ("memory after each part, MB", memory, growth < 0.03 * memory[-2]),
            ("batches that failed", metrics["lm_faults_total"], not metrics["lm_faults_total"]),
            ("programs compiled since the start", compiled, not compiled),
            ("exit code", code := server.stop(), code == 0),
        ],
    )  # fmt: skip
    if not holds:
        print(server.log()[-3000:])
    raise SystemExit(0 if holds else 1)


if __name__ == "__main__":
    app.run(main)
