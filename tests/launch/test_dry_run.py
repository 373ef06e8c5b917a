"""What every launcher would run, word for word: the files in golden/.

After a change that is meant, write them anew: python tests/launch/test_dry_run.py
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
RUN = "--config=configs/bert_large.py --config.mesh.fsdp=2 --config.train.steps=9000"
TWICE = "--config.data.batch_size=512"  # rows for 512 devices
BUCKET = f"{RUN} --workdir=gs://bucket/runs/bert_large"
COMMANDS = {
    "local": "local.py --processes=2 --devices=4 -- python launch/train.py --config=x.py '--workdir=a folder'",
    "slurm_cpu": f"slurm.py --nodes=2 {RUN} --workdir=/shared/runs/bert_large",
    "slurm_gpu": "slurm.py --nodes=4 --gpus_per_node=8 --time=24:00:00 --notice=300 --partition=gpu --account=lab "
    f"--name=bert {BUCKET}",
    "tpu_vm": f"tpu_vm.py --topology=v5p:4x4x4 --zone=us-east5-a --keep {BUCKET}",
    "tpu_vm_spot": "tpu_vm.py --topology=v5e:16x16 --slices=2 --spot --zone=us-central1-a --project=lab "
    f"--service_account=trainer@lab.iam.gserviceaccount.com {BUCKET} {TWICE}",
    "tpu_vm_delete": f"tpu_vm.py --topology=v5e:16x16 --zone=us-central1-a --delete {BUCKET}",
    "gke_tpu": f"gke.py --topology=v6e:8x8 --image=registry/lm:tpu {BUCKET}",
    "gke_tpu_slices_quota": "gke.py --topology=v5e:16x16 --slices=2 --image=registry/lm:tpu --queue=research "
    f"--quota=256 --borrow=512 --cohort=all --service_account=trainer --context=pod --namespace=lm {BUCKET} {TWICE}",
    "gke_gpu_spot": "gke.py --gpu=nvidia-h100-80gb --nodes=2 --spot --image=registry/lm:gpu --secret=s3-keys "
    f"--queue=research {RUN} --workdir=s3://bucket/runs/bert_large",
    "gke_file": f"gke.py --topology=v5e:2x4 --image=registry/lm:tpu --output=jobset.yaml {BUCKET}",
}


def dry_run(arguments: str) -> str:
    """What a launcher prints, without what depends on this checkout: snapshot, Python, number of files."""
    script, _, rest = arguments.partition(" ")
    command = f"{sys.executable} launch/cluster/{script} --dry_run {rest}"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace(sys.executable, "PYTHON")
    text = re.sub(r"\d+ files of \S+,", "N files of CHECKOUT,", text)
    return re.sub(r"\b[0-9a-f]{12}\b", "SNAPSHOT", text)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_dry_run_prints_what_would_be_run(name: str) -> None:
    assert dry_run(COMMANDS[name]) == (GOLDEN / f"{name}.txt").read_text()


def test_no_golden_file_is_left_over() -> None:
    others = {path.stem for path in GOLDEN.glob("serve_*.txt")}  # of test_serving_manifests.py
    assert {path.stem for path in GOLDEN.iterdir()} - others == set(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (f"gke.py --image=i {BUCKET}", "--topology is '' and --gpu is ''; give one of them."),
        (f"gke.py --image=i --topology=v5e:4x4 --quota=8 {BUCKET}", "--quota needs a --queue, and --borrow"),
        (f"gke.py --image=i --topology=v5e:4x4 --queue=q --cohort=a {BUCKET}", "--cohort has no effect without"),
        (f"gke.py --image=i --topology=v5e:4x4 {RUN} --workdir=/runs", "--workdir is /runs, which no pod can see"),
        (
            f"gke.py --image=i --topology=v5e:4x4 {RUN} --workdir=foo://b/r",
            "'foo://b/r' has an unknown scheme; accepted",
        ),
        (
            f"tpu_vm.py --zone=us-east5-a --topology=v5e:4x4 {RUN} --workdir=s3://bucket/r",
            "which TPU VMs do not share; accepted: gs:",
        ),
        (f"gke.py --image=i --topology=v5e:4x4 {BUCKET} --config.mesh.fsdp=32", "32 devices of 16"),
        (
            f"gke.py --image=i --topology=v5e:4x4 --name=My_run {BUCKET}",
            "--name is 'My_run'; accepted: at most 40 lower",
        ),
    ],
)
def test_what_is_given_wrongly_is_one_line(arguments: str, message: str) -> None:
    done = subprocess.run(
        [sys.executable, *f"launch/cluster/{arguments}".split(), "--dry_run"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, arguments in COMMANDS.items():
        (GOLDEN / f"{name}.txt").write_text(dry_run(arguments))
