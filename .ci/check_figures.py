"""Checks the figures of the default runs (seeds 0, 1, 2) against their bars, with some slack for noise between machines."""

import json
import sys
from pathlib import Path

SLACK = 0.03
MOST_SECONDS = 540
BARS = {
    "edits/efficacy": 0.95,
    "edits/paraphrase": 0.95,
    "edits/specificity": 0.95,
    "decoder/id": 0.95,
    "decoder/ood": 0.83,
    "decoder/unseen_object": 0.88,
}
LATER_SECONDS = 90


def main(folder: Path) -> None:
    results = [json.loads(file.read_text()) for file in sorted(folder.glob("*/result.json"))]
    if len(results) != 3 or any(result["status"] != "ok" for result in results):
        sys.exit(f"{folder}: expected three finished runs, found {[result['status'] for result in results]}")
    below = []
    for name, bar in BARS.items():
        group, figure = name.split("/")
        found = [result["edits"][figure] if group == "edits" else result["test"][figure]["exact_match"]["value"] for result in results]
        mean = sum(found) / len(found)
        print(f"{name}: {mean:.3f}, bar {bar}{'' if mean >= bar else ', SHORT OF THE BAR'}")
        if mean < bar - SLACK:
            below.append(name)
    for result in results:
        print(f"seed {result['seed']}: {', '.join(f'{stage} {seconds:.0f} s' for stage, seconds in result['seconds'].items())}")
    if max(result["seconds"]["total"] for result in results) > MOST_SECONDS:
        below.append("seconds/total")
    later = max(result["seconds"]["total"] for result in results if result["seed"])
    print(f"another seed: {later:.0f} s, bar {LATER_SECONDS}{'' if later < LATER_SECONDS else ', SHORT OF THE BAR'}")
    if below:
        sys.exit(f"too low: {', '.join(below)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
