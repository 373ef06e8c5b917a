"""What launch/plan.py --fleet predicts for a trace, beside what Ray did with it.

python -m tests.faults.ray_serve ... --only=trace --cpu_limit=0.25 --record=seen.json
python -m tests.faults.fleet --record=seen.json

The record has the moments of all requests, and the speed and the start of a replica as measured before the trace.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from tests.faults.served import ROOT

_record = flags.DEFINE_string("record", None, "File of tests.faults.ray_serve.", required=True)


def predict(seen: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns what the simulation says of the same requests."""
    replica = dict(seen["replica"])
    tokens = round(replica.pop("tokens"))
    with open(folder / "trace.csv", "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["time", "tokens"])
        lines.writerows(
            [request["sent"], tokens] for request in sorted(seen["requests"], key=lambda each: each["sent"])
        )
    command = [sys.executable, "launch/plan.py", "--fleet", "--autoscaler=ray", f"--trace={folder}/trace.csv"]
    command += [f"--output={folder}/plan.json", *(f"--{name}={value}" for name, value in replica.items())]
    print(" ".join(command), flush=True)
    subprocess.run(command, cwd=ROOT, check=True)
    return json.loads((folder / "plan.json").read_text())


def main(argv: list[str]) -> None:
    del argv
    seen = json.loads(Path(_record.value).read_text())
    with tempfile.TemporaryDirectory() as folder:
        plan = predict(seen, Path(folder))
    latencies = [request["latency"] for request in seen["requests"] if request["version"]]
    times, replicas, _ = np.array(seen["replicas"]).T
    found = {
        "mean replicas": (float(replicas.mean()), plan["mean_replicas"]),
        "most replicas": (float(replicas.max()), plan["most_replicas"]),
        "p50, s": (float(np.quantile(latencies, 0.5)), plan["p50_seconds"]),
        "p99, s": (float(np.quantile(latencies, 0.99)), plan["p99_seconds"]),
        "turns": (float((np.diff(np.sign(np.diff(replicas))[np.diff(replicas) != 0]) != 0).sum()), plan["turns"]),
    }
    print(f"{len(latencies)} answers in {times[-1]:.0f} s")
    for name, (was, predicted) in found.items():
        print(f"{name}: Ray {was:.3g}, predicted {predicted:.3g}, {predicted / was - 1 if was else 0:+.0%}")
    steps = [
        (round(t), int(n))
        for i, (t, n) in enumerate(zip(times, replicas, strict=True))
        if not i or n != replicas[i - 1]
    ]
    print("replicas of Ray:", steps)
    print("predicted:", [(round(t), n) for t, n in plan["replicas_over_time"]])


if __name__ == "__main__":
    app.run(main)
