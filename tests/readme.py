"""Runs the commands of README.md, shortened: python -m tests.readme --quick|--all.

--all installs packages and writes into this checkout. tests/readme.sh runs it in a clean clone.

Each block of commands runs in one shell, as a reader would type it. What would take long, reach a cloud or never end is
shortened by flags. The two languages' sections have the same commands, so each command runs twice: the second time with
Chinese requests, in the workdirs of the first.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHINESE = "## 中文"
_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
_SHORT = "--config.train.steps=2 --config.train.eval_batches=1 --config.checkpoint.keep=1"
_TINY = f"--config.model.num_layers=1 {_SHORT}"
_ROWS = f"{_TINY} --config.data.batch_size=8 --config.data.seq_length=64"
_OWN = f"{_ROWS} --config.data.vocab_size=600"
_TEXT = "--config.data.source=text --config.data.path='corpus/*.txt'"
_PORT = 8731
_READY = f"for _ in $(seq 120); do curl -sf localhost:{_PORT}/ready >/dev/null && break; sleep 1; done"
_POD = (
    "--config.model.num_layers=1 --config.model.d_model=128 --config.model.num_heads=2 --config.model.d_ff=128 "
    "--config.data.vocab_size=1024 --config.model.vocab_size=1024"
)

# Pattern -> replacement, in order. A command that runs several scripts may match several times.
SHORTENED = [
    (r"^bash launch/quickstart\.sh", f"\\g<0> {_SHORT}"),  # goes on with the run that has made the environment
    (r"^bash launch/test\.sh", r"\g<0> tests/test_sizes.py"),
    (r"^(python launch/train\.py --config=configs/mini\.py.*--config\.data\.tokenizer=.*)", f"\\1 {_ROWS} "),
    (r"^(python launch/(train|prepare)\.py --config=configs/mini\.py(?!.*data\.tokenizer=).*)", f"\\1 {_OWN}"),
    (
        r"^(python launch/cluster/local\.py.*)",
        f"\\1 {_OWN} --config.data.source=text --config.data.path='corpus/*.txt'",
    ),
    (r"^(python launch/cluster/(gke|kubernetes|ray_serve|slurm|tpu_vm)\.py) (--dry_run )?", r"\1 --dry_run "),
    (r"^(python launch/plan\.py --fleet.*)--rate=2:40", r"\1--rate=0.2:4"),
    (r"^gcloud .*", r"echo 'not run: \g<0>'"),
    (r"^docker build --push ", "docker build "),
    (r"^(python launch/plan\.py --c.*)", f"\\1 {_POD} --config.data.seq_length=128"),
    (r"(plan\.py.*)--topology=\S+,\S+ --search", r"\1--topology=v5e:2x2,v6e:2x2 --search --layouts=1"),
    (r"^tail -f ", "head -n 3 "),
    (r"^(python launch/serve\.py .*)--port=8000", rf"\1--port={_PORT} & trap 'kill %1' EXIT; {_READY}"),
    (r"localhost:8000", f"localhost:{_PORT}"),
    (r"--from_huggingface=DIR", "--from_huggingface=mine-hf"),
    (
        r"^docker build .*",
        r"if docker info >/dev/null 2>&1; then \g<0>; else echo 'skipped docker build: no docker daemon answers'; fi",
    ),
]
QUICK = re.compile(r"launch/cluster/(gke|kubernetes|ray_serve|slurm|tpu_vm)\.py")


def sections() -> dict[str, str]:
    """Returns the text of the English and of the Chinese part."""
    english, _, chinese = (ROOT / "README.md").read_text().partition(CHINESE)
    return {"English": english, "Chinese": chinese}


def blocks(section: str) -> Iterator[list[str]]:
    """Yields the commands of each block, continued lines joined and comments left out."""
    for block in _BLOCK.findall(section):
        lines = (re.sub(r"\s+# .*|^# .*", "", line).strip() for line in block.replace("\\\n", " ").splitlines())
        yield [re.sub(r"\s+", " ", line) for line in lines if line]


def shortened(command: str) -> str:
    """Returns a command that does the same in seconds or minutes, on this machine."""
    for pattern, replacement in SHORTENED:
        command = re.sub(pattern, replacement, command)
    return command


def write_inputs() -> None:
    """Writes the corpus and the requests that the README speaks of."""
    Path("corpus").mkdir(exist_ok=True)
    guides = [path.read_text() for path in sorted(Path().glob("*/README.md"))]
    chinese = "今天天气很好,我们去公园散步。路上的人很多,孩子们在草地上跑来跑去。\n\n" * 40
    Path("corpus/guides.txt").write_text("\n\n".join(guides) * 4)
    Path("corpus/chinese.txt").write_text(chinese)
    Path("requests.txt").write_text("Return a list.\n今天天气很好。\nThe end.\n")


def main() -> int:
    if sys.argv[1:] not in (["--quick"], ["--all"]):
        print("error: give --quick or --all; bash tests/readme.sh runs --all in a clean clone.", file=sys.stderr)
        return 2
    quick, failed = "--quick" in sys.argv, 0
    os.chdir(ROOT)
    write_inputs()
    for language, section in sections().items():
        if language == "Chinese":  # a folder to write into must be new
            subprocess.run("rm -rf mine-hf runs/imported", shell=True, check=True)
        for commands in blocks(section):
            chosen = [shortened(each) for each in commands if not quick or QUICK.search(each)]
            if chosen:
                print(f"== {language}\n" + "\n".join(chosen), flush=True)
                script = "\n".join(["set -eo pipefail", *chosen])
                done = subprocess.run(["bash", "-c", script], stdin=subprocess.DEVNULL)
                failed += done.returncode != 0
                print(f"exit code {done.returncode}", flush=True)
    return failed and 1


if __name__ == "__main__":
    sys.exit(main())
