"""The rules that keep the code apart, read from its syntax: who imports whom, and who may ask for a family's name."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in ("lm", "launch")
    for path in sorted((ROOT / folder).rglob("*.py"))
}

# A room of lm -> the rooms it may import, beside its own. Imports run one way.
GROUND = {"accelerators", "config", "errors", "flops", "sharding", "storage", "lease", "lora", "parameters"}
MIDDLE = {"tokenizers", "data", "ops", "models", "checkpoint"}
ROOMS = {
    "errors": set(),
    "interrupts": set(),
    "fonts": {"errors"},
    "__main__": set(),
    "config": {"errors"},
    "families": {"config", "errors"},
    "cli": {"accelerators", "config", "errors", "interrupts"},
    "accelerators": {"errors"},
    "flops": {"config"},
    "cluster": {"accelerators", "config", "cli", "errors", "inference", "interrupts", "storage"},
    "sharding": {"config", "errors"},
    "aws": set(),
    "storage": {"aws", "config", "errors"},
    "lease": {"config", "errors", "storage"},
    "distributed": {"config", "cli", "errors", "interrupts"},
    "tokenizers": {"config", "errors", "storage"},
    "data": GROUND | {"tokenizers"},
    "ops": GROUND,
    "models": GROUND | {"ops"},
    "checkpoint": GROUND | {"checksums", "orbax_storage"},
    "checksums": set(),
    "orbax_storage": {"checksums", "errors", "parameters", "storage"},
    "parameters": set(),
    "lora": {"config", "errors", "parameters"},
    "tasks": GROUND | MIDDLE,
    "training": GROUND | MIDDLE | {"tasks", "distributed", "fonts"},
    "inference": GROUND | MIDDLE | {"tasks", "fonts", "cli"},
    "huggingface": GROUND | MIDDLE | {"families", "tasks"},
    "serving": GROUND | MIDDLE | {"__version__", "checksums", "tasks", "inference", "cluster"},
    "plan": GROUND | MIDDLE | {"tasks", "training", "inference", "huggingface", "cli", "cluster"},
}
NEVER = {"configs", "launch", "tests", "torch", "transformers"}
# The launchers' table, the host's work ahead of a step, and the wording of requests.
WITHOUT_JAX = {
    "lm/accelerators.py",
    *(f"lm/data/{name}.py" for name in ("batches", "examples", "flat", "mixture", "packing", "two_sided", "windows")),
    *(f"lm/inference/{name}.py" for name in ("languages", "packed", "prompts", "requests")),
    *(f"lm/plan/{name}.py" for name in ("autoscale", "fleet", "fleet_flags", "traffic")),
    *(f"lm/serving/{name}.py" for name in ("refusals", "scheduler", "schema", "settings", "text")),
}
FAMILIES = {
    *("bert", "modernbert", "t5", "bart", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet"),
    *("albert", "mt5", "umt5", "mbart", "marian", "pegasus", "m2m_100"),
}
MAY_NAME_FAMILIES = (
    "lm/families.py",
    "lm/huggingface/",
    "lm/tokenizers/classes.py",
    "lm/tokenizers/languages.py",
)  # classes and lists of codes are named after models
MAY_USE_ORBAX = ("lm/checkpoint.py", "lm/orbax_storage.py")
LAUNCH_LINES = 80  # logic belongs to lm, where a test can reach it

# Where the name to install is not the name to import.
DISTRIBUTIONS = {"absl-py": "absl", "orbax-checkpoint": "orbax", "protobuf": "google", "PyYAML": "yaml"}


def imports(path: str, source: str) -> Iterator[str]:
    """The dotted names that a file imports; `from a import b` may mean a module and gives a.b."""
    package = path.removesuffix(".py").removesuffix("/__init__").split("/")
    if not path.endswith("/__init__.py"):
        package.pop()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def import_violations(path: str, source: str) -> list[str]:
    """What a file of lm or launch imports against the rules, a line each."""
    room = path.removesuffix(".py").split("/")[1]
    in_lm = path.startswith("lm/") and room != "__init__"
    if in_lm and room not in ROOMS:
        return [f"{path}: the room {room!r} is not in the table of this test"]
    found = []
    for name in imports(path, source):
        top, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if top in NEVER:
            found.append(f"{path} imports {top}")
        elif top == "orbax" and path not in MAY_USE_ORBAX:
            found.append(f"{path} imports orbax; only {' and '.join(MAY_USE_ORBAX)} do")
        elif top == "jax" and path in WITHOUT_JAX:
            found.append(f"{path} imports jax")
        elif top == "lm" and in_lm and target != room and target not in ROOMS[room]:
            found.append(f"{path} imports lm.{target}; it may import {', '.join(sorted(ROOMS[room])) or 'nothing'}")
        elif top == "lm" and target == "sharding" and path in WITHOUT_JAX:
            found.append(f"{path} imports jax through lm.sharding")
    return found


def family_names(path: str, source: str) -> list[str]:
    """Strings that are a family's name, docstrings aside: the trace of code that asks which family it serves."""
    if path.startswith(MAY_NAME_FAMILIES):
        return []
    return [
        f"{path}:{node.lineno} names the family {node.value!r}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.lower() in FAMILIES
    ]


def test_imports_run_one_way() -> None:
    assert [line for path, source in SOURCES.items() for line in import_violations(path, source)] == []


def test_only_families_and_huggingface_name_a_family() -> None:
    assert [line for path, source in SOURCES.items() for line in family_names(path, source)] == []


def test_launch_scripts_stay_small() -> None:
    lines = {path: source.count("\n") for path, source in SOURCES.items() if path.startswith("launch/")}
    assert lines
    assert {path: count for path, count in lines.items() if count > LAUNCH_LINES} == {}


def test_what_is_imported_is_what_setup_declares() -> None:
    def packages(requirements: list[str]) -> set[str]:
        names = {re.split(r"[\[<>=]", requirement)[0] for requirement in requirements}
        return {DISTRIBUTIONS.get(name, name) for name in names}

    keywords = {
        node.arg: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.keyword) and node.arg in ("install_requires", "extras_require")
    }
    optional = set.union(*map(packages, keywords["extras_require"].values()))
    names = {name.split(".")[0] for path, source in SOURCES.items() for name in imports(path, source)}
    imported = names - set(sys.stdlib_module_names) - {"lm", "startup"}
    required = packages(keywords["install_requires"])
    assert imported - required - optional == set()  # installed by chance, as another package's dependency
    assert required - imported == set()  # no longer needed


@pytest.mark.parametrize(
    ("path", "source", "violation"),
    [
        ("lm/data/store.py", "from lm.models.encoder import Encoder", "imports lm.models"),
        ("lm/data/store.py", "from lm import models", "imports lm.models"),
        ("lm/data/store.py", "def f():\n    import lm.models.encoder as e", "imports lm.models"),
        ("lm/data/store.py", "from ..models import encoder", "imports lm.models"),
        ("lm/data/__init__.py", "from ..models import encoder", "imports lm.models"),
        ("lm/data/store.py", "from .. import models", "imports lm.models"),
        ("lm/models/encoder.py", "from lm.data import batches", "imports lm.data"),
        ("lm/training/loop.py", "from lm.inference import predict", "imports lm.inference"),
        ("lm/inference/predict.py", "from lm.training import loop", "imports lm.training"),
        ("lm/data/batches.py", "from lm import tasks", "imports lm.tasks"),
        ("lm/models/encoder.py", "from lm.tasks import mlm", "imports lm.tasks"),
        ("lm/tasks/mlm.py", "from lm.training import step", "imports lm.training"),
        ("lm/sharding.py", "from lm.models import build", "imports lm.models"),
        ("lm/config/model.py", "import lm.sharding", "it may import errors"),
        ("lm/config/model.py", "from lm import families", "imports lm.families"),
        ("lm/models/encoder.py", "from lm.families import bert", "imports lm.families"),
        ("lm/cli.py", "from lm.training import loop", "imports lm.training"),
        ("lm/helpers.py", "", "the room 'helpers' is not in the table"),
        ("lm/data/batches.py", "import jax.numpy as jnp", "imports jax"),
        ("lm/data/packing.py", "from lm.sharding import constrain", "imports jax through lm.sharding"),
        ("lm/models/encoder.py", "from torch import nn", "imports torch"),
        ("launch/train.py", "import transformers", "imports transformers"),
        ("lm/models/encoder.py", "import configs.bert_base", "imports configs"),
        ("lm/training/loop.py", "import orbax.checkpoint as ocp", "imports orbax"),
    ],
)
def test_the_import_rules_can_fail(path: str, source: str, violation: str) -> None:
    (found,) = import_violations(path, source)
    assert violation in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lm/data/store.py", "from lm.config import DataConfig\nfrom lm.data import tokenizer\nfrom . import corpus"),
        ("lm/data/store.py", "import jax"),
        ("lm/checkpoint.py", "import orbax.checkpoint"),
        ("lm/plan/step.py", "from lm.training import loop"),
        ("lm/data/__init__.py", "from .store import Store"),
        ("launch/train.py", "from lm.training import loop\nfrom lm.inference import predict"),
    ],
)
def test_the_import_rules_can_pass(path: str, source: str) -> None:
    assert import_violations(path, source) == []


def test_the_family_rule_can_fail_and_pass() -> None:
    code = 'if config.family == "ModernBERT": pass'
    assert family_names("lm/models/encoder.py", code) == ["lm/models/encoder.py:1 names the family 'ModernBERT'"]
    assert family_names("lm/models/encoder.py", "match family:\n    case 't5': pass") != []
    assert family_names("lm/huggingface/bert.py", code) == []
    assert family_names("lm/families.py", code) == []
    assert family_names("lm/config/model.py", code) != []
    assert family_names("lm/models/encoder.py", '"""BERT."""\nname = "a BERT model"') == []
