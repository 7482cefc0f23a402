"""The model card of an exported decoder."""

from typing import Any

CARD = """---
library_name: palimpsest-decoder
base_model: {host[id]}
base_model_relation: adapter
license: mit
---

# Weight-to-object decoder for {host[id]}, edited layer {edited_layer}

Reads an edited `{module}` matrix of {host[id]} and says which object the edit planted, with no prompt, subject or candidates.

| | |
| --- | --- |
| host | {host[id]} ({host[model_type]}, {host[dtype]}, fingerprint {host[fingerprint]}) |
| trained layer | {trained_layer} |
| prompt vectors | {prompt_length} |
| trained on | {editors} |

## Measured

| split | n | exact match | 95 % interval | first token |
| --- | --- | --- | --- | --- |
{rows}

Validation edits against matrices without an edit: AUROC {auroc:.3f}.

## Limits

- It assumes that the matrix holds one edit. On a clean matrix it still names an object: look at `null_percentile`.
- It was trained and scored on edits of the editors above, on this host and layer; other editors, layers, further training and
  rounding of the matrix were not scored.
- Objects of a kind that no training relation has are read worse than the table's mean.
"""


def model_card(config: dict[str, Any]) -> str:
    """The card in Markdown, with the scores the config carries."""
    rows = "\n".join(_row(split, scores) for split, scores in config["scores"].items())
    editors = ", ".join(f"{editor['name']} (ridge {editor['settings']['ridge']})" for editor in config["editors"])
    return CARD.format(rows=rows, auroc=config["calibration"]["auroc"], **(config | {"editors": editors}))


def _row(split: str, scores: dict[str, Any]) -> str:
    exact, first = scores["exact_match"], scores["first_token"]
    low, high = exact["ci95"]
    return f"| {split} | {scores['n']} | {exact['value']:.3f} | {low:.3f} to {high:.3f} | {first['value']:.3f} |"
