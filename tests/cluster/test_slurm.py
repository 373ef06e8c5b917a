"""Paths with spaces and other characters in what the launchers write, read as the cluster reads them."""

import shlex

import pytest
import yaml

from lm.cluster import gke, google, manifests, slurm
from lm.cluster.snapshot import Snapshot
from lm.errors import InputError

JOB = slurm.Job("run", nodes=1, gpus_per_node=0, time="2-12", notice=120, partition="", account="")
PATHS = ["/shared/my runs", "/共享/模型", "/a'b", '/a"b', "/50% #1", "/$HOME/`id`"]


def read_directives(script: str) -> dict[str, str]:
    """The options of a script as sbatch's `get_argument` finds them: quotes group, # begins a comment."""
    found = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            words = shlex.shlex(line.removeprefix("#SBATCH"), posix=True, punctuation_chars=False)
            words.whitespace_split, words.escapedquotes = True, "\"'"
            (option,) = words
            name, _, value = option.partition("=")
            found[name] = value
    return found


@pytest.mark.parametrize("path", PATHS)
def test_sbatch_finds_the_file_of_the_output(path: str) -> None:
    run = Snapshot(f"{path}/launch/abc", (), ("launch/train.py", "--config=c.py", f"--workdir={path}"), ())
    found = read_directives(slurm.script(JOB, run, "python"))
    assert found["--output"].replace("%%", "%") == f"{path}/launch/abc/%x-%j.log"
    assert found["--time"] == "2-12"
    assert shlex.split(slurm.process(run, "python").splitlines()[-1]) == [f"--workdir={path}"]


def test_a_backslash_is_refused() -> None:
    with pytest.raises(InputError, match="sbatch takes no backslash in a path"):
        slurm.script(JOB, Snapshot("/a\\b", (), ("launch/train.py",), ()), "python")


@pytest.mark.parametrize("path", PATHS)
def test_a_manifest_has_the_path_as_it_is(path: str) -> None:
    run = Snapshot(f"gs:/{path}/launch/abc", (), ("launch/train.py", f"--workdir=gs:/{path}"), ())
    job = gke.Job("run", "default", "i", google.Gpus("nvidia-l4", 1, 1))
    made = gke.jobset(job, run)
    text = manifests.to_yaml([made])
    assert yaml.safe_load(text) == made
    assert "\\u" not in text
    (pod,) = (each["template"]["spec"]["template"]["spec"] for each in made["spec"]["replicatedJobs"])
    (container,) = pod["containers"]
    assert shlex.split(container["command"][2].splitlines()[-1])[-1] == f"--workdir=gs:/{path}"
