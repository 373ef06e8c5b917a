"""The guides are true: what they name exists, and the reading order is that of the picture."""

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from lm.config import Config, TaskConfig
from tests import readme
from tests.test_imports import ROOMS

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "lm/reading_order.svg"
GUIDES = (
    "README.md",
    "lm/README.md",
    "CONTRIBUTING.md",
    "configs/README.md",
    "launch/README.md",
    "lm/serving/README.md",
    "launch/cluster/monitoring/README.md",
)
READING_ORDER = [
    "lm/config/model.py",
    "lm/models/attention.py",
    "lm/models/layers.py",
    "lm/models/transformer.py",
    "lm/tasks/mlm.py",
    "lm/training/step.py",
    "lm/training/loop.py",
]
READING_LINES = 1500

SECTIONS = {field.name for field in dataclasses.fields(Config)} - {"seed"}
SCRIPT = re.compile(r"launch/[\w/]+\.(?:py|sh)")
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def code(guide: str) -> Iterator[str]:
    """Yields the commands of code blocks, continued lines joined, and every piece of code within a line."""
    for block in FENCED.findall(guide):
        yield from filter(None, (line.strip() for line in block.replace("\\\n", " ").splitlines()))
    for span in re.findall(r"`([^`\n]+)`", FENCED.sub("", guide)):
        yield span.replace(r"\|", "|")
    yield from (line.strip() for line in guide.splitlines() if line.startswith("    "))


def missing_paths(guide: str, folder: Path) -> list[str]:
    """The targets of links and the paths in code that do not exist, below the root or below the guide's folder."""
    named = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", guide) if "://" not in target}
    for piece in code(guide):
        named |= set(re.findall(r"(?<![\w./:])(?:lm|configs|launch|tests|\.ci)/[\w./-]*\w", piece))
        named |= set(re.findall(r"(?<![\w./*-])[a-z][\w/]*\.(?:py|sh|md|svg)\b", piece))
        named |= {f"{module.replace('.', '/')}.py" for module in re.findall(r"-m (tests\.[\w.]+)", piece)}
    return sorted(name for name in named if name and not any((base / name).exists() for base in (ROOT, folder)))


def unknown_fields(guide: str) -> list[str]:
    """The settings, as flags or in code as SECTION.FIELD, that the config does not have."""
    named = set(re.findall(r"--(?:no)?config\.([a-z]\w*(?:\.\w+)*)", guide))
    for piece in code(guide):
        if (match := re.fullmatch(r"(\w+\.\w+)(?:=\S*)?", piece)) and match[1].partition(".")[0] in SECTIONS:
            named.add(match[1])
    return sorted(name for name in named if not re.search(r"\.(py|md|json)$", name) and not _is_field(name))


def _is_field(name: str) -> bool:
    section, *rest = name.split(".")
    if section == "mixture" and rest[0] == "tasks" and len(rest) == 3:
        return hasattr(TaskConfig(), rest[2])
    value = getattr(Config(), section, None)
    return len(rest) == 1 and hasattr(value, rest[0]) if rest else section == "seed"


def defined_flags(script: str) -> set[str]:
    """The flags of a launch script, as it defines them or as the functions that it calls do; nothing is run."""
    source = (ROOT / script).read_text()
    if script.endswith(".sh"):
        return set(re.findall(r"--(\w+)\)", source))  # a case of its arguments
    helpers = {
        node.name: node
        for path in (
            "lm/cli.py",
            "lm/cluster/flags.py",
            "lm/cluster/serving_flags.py",
            "lm/inference/dataset_flags.py",
            "lm/inference/decoding_flags.py",
            "lm/plan/fleet_flags.py",
            "lm/plan/serving_flags.py",
        )
        for node in ast.parse((ROOT / path).read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("define_")
    }
    found: set[str] = {"help"}
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        for node in ast.walk(waiting.pop()):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = node.func.attr
                if (
                    name.startswith("DEFINE_") or name in ("define_path", "define_picture", "define_word")
                ) and isinstance(node.args[0], ast.Constant):
                    found.add(str(node.args[0].value))
                elif name in helpers:
                    waiting.append(helpers[name])
    return found


def calls(piece: str) -> Iterator[tuple[str, list[str]]]:
    """Yields each launch script of a command and the names of its flags."""
    try:
        words = shlex.split(piece, comments=True)
    except ValueError:  # a sentence in code: no command
        return
    script, found = "", []
    for word in [*words, "|"]:
        if SCRIPT.fullmatch(word) or word in ("|", "--"):
            if script:
                yield script, found
            script, found = word if SCRIPT.fullmatch(word) else "", []
        elif script and (match := re.match(r"--([a-z]\w*)", word)):
            found.append(match[1])


def unknown_flags(guide: str) -> list[str]:
    """`SCRIPT --FLAG` where the script has no such flag; a flag alone may be that of any script."""
    scripts = [str(path.relative_to(ROOT)) for path in (ROOT / "launch").rglob("*.py")]
    anywhere = set().union(*map(defined_flags, [*scripts, "launch/test.sh"])) | {"noconfig"}
    found = []
    for piece in code(guide):
        for script, names in calls(piece):
            accepted = defined_flags(script) | ({"noconfig"} if "config" in defined_flags(script) else set())
            found += [f"{script} --{name}" for name in names if name not in accepted]
        if (match := re.match(r"--([a-z]\w*)", piece)) and match[1] not in anywhere:
            found.append(f"--{match[1]}")
    return found


def drawn(picture: Path) -> tuple[list[str], list[str]]:
    """The numbered files of the picture in their order, and the other files that it names."""
    room, numbered, others = "", [], []
    for element in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text"):
        text = element.text or ""
        match element.get("class"):
            case "room":
                room = text
            case "file":
                numbered.append(f"{room}/{text}")
            case "next":
                others += [f"{room}/{name}.py" for name in re.findall(r"\w+", text)]
            case "name":
                others.append(f"lm/{text}")
    return numbered, others


# ---- The reading order --------------------------------------------------------------------------


def test_the_picture_and_the_guide_give_the_reading_order() -> None:
    listed = re.findall(r"^\d\. \[([\w/]+\.py)\]", (ROOT / "lm/README.md").read_text(), re.MULTILINE)
    assert [f"lm/{path}" for path in listed] == READING_ORDER
    assert drawn(PICTURE)[0] == READING_ORDER


def test_the_reading_order_is_read_in_an_afternoon() -> None:
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in READING_ORDER}
    assert sum(lines.values()) < READING_LINES, lines


def test_the_picture_names_what_exists() -> None:
    others = drawn(PICTURE)[1]
    assert others
    assert [name for name in others if not (ROOT / name).exists() and not (ROOT / f"{name}.py").exists()] == []


def test_the_guide_describes_every_room() -> None:
    described = re.findall(r"\]\((\w+)(?:/|\.py)\)", (ROOT / "lm/README.md").read_text())
    assert set(ROOMS) - set(described) == set()


# ---- What the guides name -----------------------------------------------------------------------


@pytest.mark.parametrize("name", GUIDES)
def test_guides_name_what_exists(name: str) -> None:
    guide = (ROOT / name).read_text()
    assert missing_paths(guide, (ROOT / name).parent) == []
    assert unknown_fields(guide) == []
    assert unknown_flags(guide) == []


def test_launch_guide_lists_every_script() -> None:
    guide = (ROOT / "launch/README.md").read_text()
    scripts = [path for path in (ROOT / "launch").rglob("*") if path.suffix in (".py", ".sh")]
    unlisted = [path.name for path in scripts if f"({path.relative_to(ROOT / 'launch')})" not in guide]
    assert set(unlisted) == {"environment.sh", "startup.py"}  # which the others read


# ---- The rules themselves -----------------------------------------------------------------------


def test_the_path_rule_can_fail_and_pass() -> None:
    folder = ROOT / "lm"
    assert missing_paths("[a](models/attention.py) `lm/models/` `tests/test_readme.py` `FILE.py`", folder) == []
    assert missing_paths("[a](models/gone.py)", folder) == ["models/gone.py"]
    assert missing_paths("`configs/gone.py`", folder) == ["configs/gone.py"]
    assert missing_paths("```bash\npython launch/gone.py --a\n```", folder) == ["launch/gone.py"]
    assert missing_paths("`python -m tests.benchmarks.gone`", folder) == ["tests/benchmarks/gone.py"]


def test_the_field_rule_can_fail_and_pass() -> None:
    good = "`--config.data.path=x` `--noconfig.model.gated` `optim.frozen` `--config.mixture.tasks.dates.rate=3`"
    assert unknown_fields(f"{good} `model.py` `--config.seed=1`") == []
    bad = "`--config.data.gone=1` `optim.gone` `--config.mixture.tasks.dates.gone=3` `--config.gone=1`"
    assert unknown_fields(bad) == ["data.gone", "gone", "mixture.tasks.dates.gone", "optim.gone"]


def test_the_flag_rule_can_fail_and_pass() -> None:
    good = "```bash\necho a | python launch/predict.py --task=embed \\\n  --checkpoint=x | head\n```\n`--dry_run`"
    assert unknown_flags(good) == []
    two = "`python launch/cluster/local.py --processes=2 -- python launch/train.py --config=a --config.mesh.fsdp=8`"
    assert unknown_flags(f"{two} `bash launch/test.sh --peers`") == []
    assert unknown_flags(two.replace("--config=a", "--processes=2")) == ["launch/train.py --processes"]
    assert unknown_flags(good.replace("checkpoint", "workdir")) == ["launch/predict.py --workdir"]
    assert unknown_flags("`bash launch/test.sh --gone` `--gone=1`") == ["launch/test.sh --gone", "--gone"]


def test_both_languages_have_the_same_commands() -> None:
    """Requests may be in the language of the section."""

    def commands(section: str) -> list[str]:
        found = [command for block in readme.blocks(section) for command in block]
        return [re.sub(r"'[^']*(\[MASK\]|inputs)[^']*'", "REQUEST", command) for command in found]

    english, chinese = map(commands, readme.sections().values())
    assert len(english) > 15
    assert english == chinese


def test_every_command_is_shortened_by_what_it_accepts() -> None:
    """tests/readme.sh runs these; here their scripts and flags exist."""
    for section in readme.sections().values():
        pieces = [readme.shortened(command) for block in readme.blocks(section) for command in block]
        python = [piece for piece in pieces if not piece.startswith("bash ")]  # those hand all flags on
        assert unknown_flags("".join(f"```bash\n{piece}\n```\n" for piece in python)) == []
        assert not [piece for piece in pieces if piece.startswith("tail -f") or "=DIR" in piece]


def test_the_launchers_of_the_guide_run_dry() -> None:
    """The quick commands of tests/readme.sh."""
    commands = {readme.shortened(each) for block in readme.blocks(readme.sections()["English"]) for each in block}
    quick = sorted(each for each in commands if readme.QUICK.search(each))
    assert len(quick) == 5
    for command in quick:
        words = [sys.executable, *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
