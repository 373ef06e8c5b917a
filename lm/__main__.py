"""`python -m lm` runs nothing: it names the scripts that do."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    lines = ["error: lm has no command of its own; run a script, as in: python launch/train.py --help"]
    for script in sorted([*ROOT.glob("launch/*.py"), *ROOT.glob("launch/cluster/*.py")]):
        if script.name == "startup.py":  # which the others import
            continue
        does = script.read_text().split('"""', 2)[1].splitlines()[0].partition(":")[0].rstrip(".")
        lines.append(f"  {script.relative_to(ROOT)!s:<30}{does}")
    print("\n".join(lines), file=sys.stderr)
    sys.exit(2)
