"""Launchers look for what they need before they do anything, and refuse what cannot be."""

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from lm import storage
from lm.accelerators import Topology
from lm.cluster import actions, gke, google, ray_serve, serve_options, serving_flags, slurm, tpu_vm
from lm.cluster import flags as cluster_flags
from lm.cluster.actions import Command
from lm.cluster.kubernetes import OURS
from lm.cluster.snapshot import Snapshot
from lm.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    MeshConfig,
    MixtureConfig,
    TaskConfig,
    check_divisible,
    mesh_sizes,
)
from lm.errors import InputError

ROOT = Path(__file__).parents[2]
RUN = Snapshot("gs://bucket/run/launch/abc", (), ("launch/train.py",), ())


def test_a_program_is_looked_for_before_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(storage, "reach", asked.append)
    with pytest.raises(InputError, match="no-such-program is not installed here; install it, or print with --dry_run"):
        actions.check([Command(("no-such-program", "apply"))], RUN.workdir)
    assert asked == []
    actions.check([Command((sys.executable,))], RUN.workdir)
    assert asked == [RUN.workdir]


def test_deleting_machines_needs_no_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(storage, "reach", asked.append)
    monkeypatch.setattr(actions, "carry_out", list)
    cluster_flags.perform([Command((sys.executable,))], RUN, dry_run=False)
    cluster_flags.perform([Command((sys.executable,)), actions.Write("gs://bucket/a", b"")], RUN, dry_run=False)
    assert asked == ["", RUN.workdir]


def test_what_a_run_reads_is_seen_by_its_machines(capsys: pytest.CaptureFixture[str]) -> None:
    def config(data: DataConfig, init_from: str = "") -> Config:
        return Config(data=data, checkpoint=CheckpointConfig(init_from=init_from))

    for data in (DataConfig(tokenizer="runs/mine"), DataConfig(store="store")):
        with pytest.raises(InputError, match=r"which only this machine has\. Copy it to a bucket and give gs://"):
            cluster_flags.check_paths(config(data))
    with pytest.raises(InputError, match=r"checkpoint\.init_from is runs/mine, which only this machine has"):
        cluster_flags.check_paths(config(DataConfig(), "runs/mine"))
    task = TaskConfig(store="store")
    with pytest.raises(InputError, match=r"mixture\.tasks\.a\.store is store, which only this machine has"):
        cluster_flags.check_paths(Config(mixture=MixtureConfig(tasks={"a": task})))
    assert capsys.readouterr().err == ""
    cluster_flags.check_paths(config(DataConfig(source="text", path="corpus/*.jsonl")))
    assert "data.path is corpus/*.jsonl, which only this machine has: the run needs" in capsys.readouterr().err
    for path in ("gs://bucket/a", "/data/a", "README.md", "configs/*.py"):  # git tracks the last two
        cluster_flags.check_paths(config(DataConfig(source="text", path=path, store=path), path))
        cluster_flags.check_paths(config(DataConfig(source="text", path=path)))
    assert capsys.readouterr().err == ""


def test_a_cluster_is_asked_once_before_anything_is_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\necho noise >&2\necho refused >&2\nexit $FAILS\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    wanted = [Command(("kubectl", "--context", "pod", "get", "pods"), stdin="a"), Command(("kubectl", "apply"))]
    monkeypatch.setenv("FAILS", "0")
    actions.check(wanted, "")
    assert (tmp_path / "asked").read_text() == "--context pod get --raw=/version --request-timeout=20s\n"
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(InputError, match=r"kubectl reaches no cluster \(refused\); choose one with --context"):
        actions.check(wanted, "")


def test_a_jobset_that_is_there_is_not_applied_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kubectl").write_text('#!/bin/sh\ncase "$*" in *"lm get jobset old"*) echo jobset/old;; esac\n')
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    job = gke.Job("new", "lm", "image", google.gpus("h100", 1, 8))
    gke.require_absent(job, "pod")
    with pytest.raises(InputError, match=r"JobSet old is there already, .*`kubectl delete jobset old --namespace lm`"):
        gke.require_absent(dataclasses.replace(job, name="old"), "pod")


def test_tpu_vms_are_not_asked_for_without_gcloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    request = tpu_vm.Request(name="run", zone="us-east5-a", topology=Topology.parse("v5e:4x4"))
    with pytest.raises(InputError, match="gcloud is not installed here"):
        tpu_vm.supervise(request, RUN, keep=False)


@pytest.mark.parametrize("zone", ["z", "us-central1", "us-central1-a,b", "US-central1-a", ""])
def test_a_zone_has_the_form_of_one(zone: str) -> None:
    tpu_vm.check(RUN, "us-central1-a")
    tpu_vm.check(RUN, "northamerica-northeast1-b")
    with pytest.raises(InputError, match=f"--zone is {zone!r}; accepted: a Google Cloud zone"):
        tpu_vm.check(RUN, zone)


@pytest.mark.parametrize(
    ("kind", "accepted", "refused"),
    [
        (cluster_flags.OBJECT, ["default", "a-1.b", ""], ["Bad", "a b", "-a", "a_b", "a\n"]),
        (cluster_flags.WORD, ["REGISTRY/lm:tpu@sha256:0a", "gpu,long_1"], ["a b", "a;b", "a\n", "$(a)"]),
        (cluster_flags.LABEL, ["default", "a-1", "a" * 63], ["Bad", "a.b", "a-", "a" * 64]),
        (cluster_flags.URL, ["http://prometheus:9090", "https://a.b/c?d=e"], ["a", "a:9090", "http://", "http://a b"]),
        (cluster_flags.HOST, ["lm.example.com", "*.example.com"], ["lm_example", "*", "https://lm"]),
    ],
)
def test_a_name_that_no_cluster_takes_is_refused(
    kind: tuple[str, str], accepted: list[str], refused: list[str]
) -> None:
    values = flags.FlagValues()
    cluster_flags.define_word("name", None, "Of something.", kind, flag_values=values)
    for word in accepted:
        values(["script", f"--name={word}"])
        assert values["name"].value == word
    for word in refused:
        with pytest.raises(InputError, match=r"--name is .*; accepted: "):
            values(["script", f"--name={word}"])


def test_a_name_with_a_default_is_not_empty() -> None:
    values = flags.FlagValues()
    cluster_flags.define_word("namespace", "default", "", flag_values=values)
    with pytest.raises(InputError, match="--namespace is ''; accepted: "):
        values(["script", "--namespace="])


@pytest.mark.parametrize("given", ["a", "=b", "a=b c", "-a=b", "a=-b", "a/b/c=d", "a b=c", ""])
def test_a_label_of_machines_is_one(given: str) -> None:
    labels = ["gpu=", "nvidia.com/gpu.product=NVIDIA-L4", "a_b.c=1"]
    assert serving_flags._pairs("node_labels", labels) == dict(each.split("=") for each in labels)
    with pytest.raises(InputError, match=r"--node_labels has .*; accepted: KEY=VALUE,KEY=VALUE"):
        serving_flags._pairs("node_labels", [given])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--tassks=embed", "nearest: --tasks"),
        ("--port=3", "give --port before --."),
        ("tasks=embed", "accepted: --FLAG=VALUE of launch/serve.py except port"),
        ("--tasks", "accepted: --tasks=VALUE"),
        ("--noslots", "nearest: --slots"),
    ],
)
def test_options_that_no_replica_takes_are_refused(option: str, said: str) -> None:
    ours = {"port": "give --port before --"}
    serve_options.check(["--tasks=embed", "--log_requests", "--nolog_requests", "--checkpoint=x"], ours)
    with pytest.raises(InputError, match=f"after -- there is '{option}'; {said}"):
        serve_options.check([option], ours)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--tasks=fill-mask,embedd", "--tasks has 'embedd'; nearest: embed."),
        ("--extra_options=forced,x", "--extra_options has 'x'; accepted: early_stopping, no_repeat_ngram_size,"),
        ("--slots=many", "--slots is 'many'; accepted: a whole number."),
        ("--beams=1,0", "--beams is '1,0'; accepted: numbers from 1 on, such as 1,4."),
        ("--deadline=1h", "--deadline is '1h'; accepted: a number."),
        ("--truncate=maybe", "--truncate is 'maybe'; accepted: true or false."),
        ("--tasks=embed,", "--tasks has ''; accepted: fill-mask,"),
        ("--mesh=foo=2", "--mesh is 'foo=2'; accepted: data or tensor once each, with its devices"),
        ("--mesh=data=0", "--mesh is 'data=0'; accepted: data or tensor"),
        ("--mesh=data=-1,tensor=-1", "--mesh is 'data=-1,tensor=-1'; accepted: data or tensor"),
    ],
)
def test_values_that_no_replica_takes_are_refused(option: str, said: str) -> None:
    serve_options.check(["--tasks=embed,generate", "--tasks=", "--extra_options=forced,forced_eos", "--beams=1,4"], {})
    serve_options.check(["--deadline=.5", "--watch_seconds=1e2", "--truncate=False", "--notruncate"], {})
    serve_options.check(["--tasks=embed, generate", "--beams=1, 4", "--mesh=data=2, tensor=-1", "--mesh="], {})
    with pytest.raises(InputError, match=re.escape(said)):
        serve_options.check([option], {})


def test_a_mesh_fits_the_devices_of_a_replica() -> None:
    for mesh in ("data=4", "tensor=2", "data=-1,tensor=2", "data=2, tensor=2", ""):
        serve_options.check_mesh([f"--mesh={mesh}"], 4)
    for mesh, devices in (("tensor=2", 1), ("data=2,tensor=4", 4), ("data=-1,tensor=3", 4)):
        with pytest.raises(InputError, match=f"--mesh={mesh}, but the --accelerator .* has {devices} JAX device"):
            serve_options.check_mesh([f"--mesh={mesh}"], devices)


def test_adapters_belong_to_one_model() -> None:
    serve_options.check_adapters(["--adapters=law=runs/law"], "runs/mine")
    serve_options.check_adapters(["--adapters="], "a=runs/a,b=runs/b")
    with pytest.raises(InputError, match="which belong to one model, but --checkpoint is a=runs/a,b=runs/b"):
        serve_options.check_adapters(["--adapters=law=runs/law"], "a=runs/a,b=runs/b")


def test_a_replicas_flag_before_the_dashes_is_told_its_place() -> None:
    for name in ("tasks", "nolog_requests"):
        said = f"--{name} is a flag of launch/serve.py; put it after --"
        assert serve_options.misplaced(name, OURS).startswith(said)
        values = flags.FlagValues()
        with pytest.raises(flags.UnrecognizedFlagError) as unknown:
            values(["script", f"--{name}=x"])
        assert unknown.value.flagname == name
    assert serve_options.misplaced("taskz", OURS) == serve_options.misplaced("nothing", OURS) == ""
    said = "--api_keys_file is a flag of launch/serve.py alone: no pod has that file, so name a --secret"
    assert serve_options.misplaced("api_keys_file", OURS).startswith(said)


def test_every_bound_of_a_replicas_flags_is_checked() -> None:
    """A number just outside of each bound that launch/serve.py sets is refused, and the bound itself is not."""
    bounds = [
        (name, bound, outward)
        for name, flag in serve_options._flags().items()
        for bound, outward in ((flag.least, -1), (flag.most, 1))
        if math.isfinite(bound)
    ]
    assert {("slots", 1, -1), ("top_logprobs", 20, 1), ("deadline", 0.001, -1)} <= {*bounds}
    for name, bound, outward in bounds:
        serve_options.check([f"--{name}={bound}"], {})
        with pytest.raises(InputError, match=f"--{name} is {bound + outward}; accepted: a .*number from "):
            serve_options.check([f"--{name}={bound + outward}"], {})


def test_replicas_on_ray_get_lists_without_spaces() -> None:
    """As launch/serve.py reads them."""
    wanted = ray_serve.Replicas("runs/mine", ("--tasks=embed, generate", "--beams=1, 4", "--slots=4"))
    (application,) = ray_serve.config(wanted)["applications"]
    assert application["args"]["options"] == ["--tasks=embed,generate", "--beams=1,4", "--slots=4"]


@pytest.mark.parametrize("limit", ["", "5", "5:30", "24:00:00", "2-12", "2-12:30", "1-0:00:00", "UNLIMITED"])
def test_slurm_reads_these_times(limit: str) -> None:
    slurm.check_time(limit, notice=120)


@pytest.mark.parametrize("limit", ["24h", "1d", "24:60:00", "24:00:61", "1-24", "-5", "soon", "1:2:3:4"])
def test_slurm_reads_no_other_times(limit: str) -> None:
    with pytest.raises(InputError, match=f"--time is {limit!r}; accepted: minutes, HOURS:MINUTES:SECONDS"):
        slurm.check_time(limit, notice=120)


def test_a_turn_is_longer_than_its_notice() -> None:
    with pytest.raises(InputError, match="--time is '2', 120 s, but the run is told to save 120 s before"):
        slurm.check_time("2", notice=120)


@pytest.mark.parametrize(
    ("text", "accepted"),
    [("v5e:16x17", "4x8, 8x8, 8x16, 16x16"), ("v6e:3x5", "8x16"), ("v5p:4x4x5", "2x2x1"), ("v4:8x4x4", "ascending")],
)
def test_a_topology_has_a_shape_that_is_sold(text: str, accepted: str) -> None:
    with pytest.raises(InputError, match=f"--topology is {text!r}, but no .* slice has the shape .*{accepted}"):
        Topology.parse(text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("h100-80gb", "nearest: nvidia-h100-80gb"),
        ("tesla-t4", "nearest: nvidia-tesla-t4"),
        ("nvidia-", "nearest: nvidia-l4"),
        ("Nvidia-L4", "nearest: nvidia-l4"),
        ("banana", "accepted: l4, a100, h100, h200, nvidia-l4"),
    ],
)
def test_a_gpu_has_a_name_of_google_or_a_short_one(given: str, said: str) -> None:
    assert google.gpus("nvidia-gb300", 1, 4).labels == {"cloud.google.com/gke-accelerator": "nvidia-gb300"}  # a new one
    assert google.one_machine("nvidia-gb300") == google.Gpus("nvidia-gb300", 1, 1)
    assert google.gpus("h100", 2, 8) == google.gpus("nvidia-h100-80gb", 2, 8) == google.Gpus("nvidia-h100-80gb", 2, 8)
    with pytest.raises(InputError, match=f"--gpu is '{given}'; {said}"):
        google.gpus(given, 1, 1)


def test_a_plan_of_a_mesh_that_does_not_fit_is_refused_before_any_work() -> None:
    command = [sys.executable, "launch/plan.py", "--config=configs/bert_large.py", "--topology=v5e:4x4"]
    done = subprocess.run([*command, "--config.mesh.fsdp=3"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: mesh is {'data': -1, 'fsdp': 3")


def test_a_mesh_fits_its_devices_without_any_device() -> None:
    config = Config()
    assert mesh_sizes(MeshConfig(fsdp=4), 16) == {"data": 4, "fsdp": 4, "context": 1, "tensor": 1}
    with pytest.raises(InputError, match="3 devices of 16"):
        mesh_sizes(MeshConfig(data=1, fsdp=3), 16)
    with pytest.raises(InputError, match="the 2 slices of these devices do not divide"):
        mesh_sizes(MeshConfig(data=1, fsdp=-1), 16, slices=2)
    with pytest.raises(InputError, match=r"model\.num_heads is 4, which mesh tensor = 8 does not divide"):
        check_divisible(mesh_sizes(MeshConfig(tensor=8), 8), dataclasses.replace(config))
