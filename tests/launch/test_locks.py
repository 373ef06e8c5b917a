"""The locks of the images have what setup.py asks for, with hashes. bash launch/lock.sh writes them anew."""

import ast
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
EXTRAS = {"cpu": ["serve", "gcs", "s3"], "gpu": ["serve", "gcs", "s3", "gpu"], "tpu": ["serve", "gcs", "s3", "tpu"]}
PYTHON = {"python_version": "3.12", "extra": ""}


def wanted(kind: str) -> list[Requirement]:
    keywords = {
        node.arg: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.keyword) and node.arg in ("install_requires", "extras_require")
    }
    lines = [
        *keywords["install_requires"],
        *(line for extra in EXTRAS[kind] for line in keywords["extras_require"][extra]),
    ]
    found = map(Requirement, lines)
    return [each for each in found if each.marker is None or each.marker.evaluate(PYTHON)]


def locked(kind: str) -> dict[str, str]:
    text = (ROOT / f"launch/locks/{kind}.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)==([\w.+!-]+)", text, re.MULTILINE))


def missing(requirements: list[Requirement], versions: dict[str, str]) -> list[str]:
    """What is not locked, or locked to a version that setup.py does not allow."""
    return [str(each) for each in requirements if versions.get(canonicalize_name(each.name), "") not in each.specifier]


@pytest.mark.parametrize("kind", EXTRAS)
def test_the_lock_has_what_setup_asks_for(kind: str) -> None:
    assert len(wanted(kind)) > 20
    assert missing(wanted(kind), locked(kind)) == []
    if kind != "cpu":
        assert any(name.startswith(("libtpu", "jax-cuda")) for name in locked(kind))


@pytest.mark.parametrize("kind", EXTRAS)
def test_every_package_has_a_hash(kind: str) -> None:
    blocks = re.split(r"\n(?=[\w.-]+==)", (ROOT / f"launch/locks/{kind}.txt").read_text())
    assert len(blocks) == len(locked(kind))
    assert [block.split("\n")[0] for block in blocks if "--hash=sha256:" not in block] == []


def test_the_rule_can_fail() -> None:
    assert missing([Requirement("numpy>=2")], {"numpy": "1.0"}) == ["numpy>=2"]
    assert missing([Requirement("numpy>=2")], {}) == ["numpy>=2"]
    assert missing([Requirement("PyYAML>=6")], {"pyyaml": "6.0.1"}) == []
