"""Decisions of the rule for folders of images: D, accuracy by stage, the quadrant and the cut.

    python benchmarks/quadrants.py DIR [DIR ...]

Runs `transferapp plan --json` on each folder with every embedded backbone and prints the table that the thresholds of
`transferapp.policy` rest on. Results go to benchmarks/results/quadrants.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import RESULTS, write_results


def plan(data: Path) -> dict[str, Any]:
    """Return the plan for a folder, as the command prints it."""
    command = [sys.executable, "-m", "transferapp", "plan", "--data", str(data), "--json"]
    document: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    plans = {folder.name: plan(folder) for folder in parser.parse_args().folders}
    print(f"{'data':<16} {'D':>5}  {'quadrant':<18} {'backbone':<19} {'cut':<9} cross-validated accuracy by stage")
    for name, document in plans.items():
        for candidate in document["backbones"]:
            stages = "  ".join(f"{stage['accuracy']:.3f}" for stage in candidate["stages"])
            mark = "▶" if candidate["chosen"] else " "
            print(
                f"{name:<16} {document['divergence']:5.2f}  {document['quadrant']:<18}"
                f"{mark}{candidate['backbone']:<19} {candidate['cut']:<9} {stages}"
            )
    write_results(RESULTS / "quadrants.json", plans)


if __name__ == "__main__":
    main()
