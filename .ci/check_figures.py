"""Checks the figures of the default runs (seeds 0, 1, 2) against their bars, with some slack for noise between machines."""

import json
import sys
from pathlib import Path

SLACK = 0.03
SECONDS = {"total": 540}
EDITS = {"efficacy": 0.95, "paraphrase": 0.95, "specificity": 0.95}
DECODER = {"id": 0.95, "ood": 0.83, "unseen_object": 0.88}


def main(folder: Path) -> None:
    results = [json.loads(file.read_text()) for file in sorted(folder.glob("*/result.json"))]
    if len(results) != 3 or any(result["status"] != "ok" for result in results):
        sys.exit(f"{folder}: expected three finished runs, found {[result['status'] for result in results]}")
    found = {f"edits/{name}": (results[0]["edits"][name], bar) for name, bar in EDITS.items()}
    for split, bar in DECODER.items():
        mean = sum(result["test"][split]["exact_match"]["value"] for result in results) / len(results)
        found[f"decoder/{split}"] = (mean, bar)
    for name, (value, bar) in found.items():
        print(f"{name}: {value:.3f} (bar {bar})")
    seconds = max(result["seconds"]["total"] for result in results)
    print(f"slowest run: {seconds:.0f} s (bar {SECONDS['total']})")
    missed = [name for name, (value, bar) in found.items() if value < bar - SLACK]
    if missed:
        sys.exit(f"below the bar by more than {SLACK}: {', '.join(missed)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
