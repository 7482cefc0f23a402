"""The model card of an exported decoder."""

from collections.abc import Iterable, Mapping
from typing import Any

from decoder.config.options import as_list, layers_text
from decoder.scores import OOD_CELLS

IN_PLACE = "matrices as they are"
DECODER_TEMPLATE = """---
library_name: palimpsest-decoder
{bases}license: mit
---

# Weight-to-object decoder for {host[id]}, edited layer {edited_layer}

Reads an edited `{module}` matrix of {host[id]} and says which object the edit planted, with no prompt, subject or candidates.

| | |
| --- | --- |
| host | {host[id]} ({host[model_type]}, {host[dtype]}, fingerprint {host[fingerprint]}) |
| trained layer | {trained_layer} |
| prompt vectors | {prompt_length} |
| reads | {reads} |
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
    """The card in Markdown, with the scores the config carries; a host of the Hub is named as base model."""
    rows = "\n".join(_row(split, scores) for split, scores in config["scores"].items())
    editors = ", ".join(map(_editor, config["editors"]))
    module = "`, `".join(as_list(config["module"]))
    layers = {name: layers_text(config[name]) for name in ("edited_layer", "trained_layer")}
    reads = "edits of one term at its own key, by their difference from the host's matrix" if config.get("own_key_tokens") else IN_PLACE
    return DECODER_TEMPLATE.format(
        rows=rows,
        bases=_bases([config]),
        auroc=config["calibration"]["auroc"],
        **(config | layers | {"editors": editors, "module": module, "reads": reads}),
    )


def _bases(entries: Iterable[Mapping[str, Any]]) -> str:
    """Lines of the front matter: the Hub ids of the hosts, as far as they are known."""
    hubs = sorted({base for entry in entries if (base := entry.get("base_model"))})
    return "base_model:\n" + "".join(f"- {base}\n" for base in hubs) + "base_model_relation: adapter\n" if hubs else ""


def _editor(editor: dict[str, Any]) -> str:
    """An editor with its ridge; that of other tools' edits is not known."""
    settings = editor["settings"]
    return f"{editor['name']} (ridge {settings['ridge']})" if "ridge" in settings else editor["name"]


def _row(split: str, scores: dict[str, Any]) -> str:
    exact, first = scores["exact_match"], scores["first_token"]
    low, high = exact["ci95"]
    return f"| {split} | {scores['n']} | {exact['value']:.3f} | {low:.3f} to {high:.3f} | {first['value']:.3f} |"


COLLECTION_TEMPLATE = """---
library_name: palimpsest-decoder
{bases}license: mit
---

# Weight-to-object decoders

Each reads an edited down-projection of one host and layer and says which object the edit planted, with no prompt, subject or candidates.
Of several runs the one with the best validation is here; the test columns had no part in the choice.

| folder | host | edited layer | trained layer | validation | {splits} |
| --- | --- | --- | --- | --- | {rule} |
{rows}

Exact match of whole objects. Each folder has its own card with intervals and limits.

## Use

```bash
python evaluate.py decoder=THIS_FOLDER suspect=matrix.safetensors
```

The decoder whose host and layer fit is chosen from `index.json`: by the tensor's name, by its shape, or by `layer=`.
"""


def collection_card(entries: list[dict[str, Any]]) -> str:
    """The card of a folder of decoders; hosts of the Hub are named as base models."""
    splits = list(dict.fromkeys(split for entry in entries for split in entry["scores"] if split not in OOD_CELLS))
    rows = "\n".join(_collection_row(entry, splits) for entry in entries)
    return COLLECTION_TEMPLATE.format(bases=_bases(entries), splits=" | ".join(splits), rule=" | ".join("---" for _ in splits), rows=rows)


def _collection_row(entry: dict[str, Any], splits: list[str]) -> str:
    cells = [
        f"[{entry['folder']}]({entry['folder']})",
        entry["host"]["id"],
        layers_text(entry["edited_layer"]),
        layers_text(entry["trained_layer"]),
        f"{entry['validation']:.3f}",
    ]
    found = [entry["scores"].get(split) for split in splits]
    return f"| {' | '.join([*cells, *('–' if score is None else format(score['exact_match'], '.3f') for score in found)])} |"
