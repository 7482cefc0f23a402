"""What decoders of one editor each read together, a gate choosing among them: from the lines that `editors.py` writes, and for it.

Shape letters: B edits, K decoders, E features.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from decoder.export.gate import FOLDS, fit_gate, seen
from decoder.scores import VAL_SPLITS, share

ANSWER = ("probability", "right", "moved")
Read = Mapping[tuple[str, str], Mapping[str, Any]]
"""What a decoder reads, by editor and split."""


def gated(lines: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """What decoders of one editor each read together, of all and of all but one, a gate choosing among them edit by edit.

    The gate is fitted on the validation edits of the same editors. Lines without `answers` (edit -> probability, whether the answer is
    right, how far the edit moved the decoder) are passed over, and so are decoders that read other edits, or too few.
    """
    found: dict[tuple[Any, ...], dict[str, dict[tuple[str, str], Mapping[str, Any]]]] = {}
    for line in lines:
        if len(line["train"]) == 1 and all(len(answer) == len(ANSWER) for answer in line.get("answers", {"": ()}).values()):
            same = found.setdefault((line["host"], line["layer"], line["seed"]), {})
            same.setdefault(line["train"][0], {})[line["read"], line["split"]] = line
    for one in found.values():
        editors = next(iter(next(iter(one.values())).values()))["editors"]
        for asked in (editors, *([other for other in editors if other != editor] for editor in editors)):
            if len(asked) > 1 and {*asked} <= {*one}:
                yield from _together(one, asked)


def _together(one: Mapping[str, Read], asked: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The lines of some editors' decoders and their gate."""
    parts = [part for read in asked for split in VAL_SPLITS if (part := _seen(one, asked, read, split))]
    if not parts or sum(int(right_BK.any(1).sum()) for _, right_BK, _ in parts) < FOLDS:
        return
    evidences, rights, ids = zip(*parts, strict=True)
    gate, _ = fit_gate(asked, torch.cat(evidences), torch.cat(rights), [edit for part in ids for edit in part])
    for (read, split), line in one[asked[0]].items():
        if split not in VAL_SPLITS and (part := _seen(one, asked, read, split)):
            evidence_BE, right_BK, _ = part
            hits = right_BK.gather(1, gate.chances(evidence_BE).argmax(1, keepdim=True)).flatten().tolist()
            told = {name: line[name] for name in ("host", "layer", "editors", "seed", "read", "split", "n")}
            told |= {name: sum(one[editor][read, split][name] for editor in asked) for name in ("train_edits", "steps")}
            yield told | {"train": asked, "gated": True, "exact_match": share(hits)}


def _seen(one: Mapping[str, Read], asked: Sequence[str], read: str, split: str) -> tuple[Tensor, Tensor, list[str]] | None:
    """What a gate sees (B, E) of decoders that read the same edits, which (B, K) are right, and the edits; None where they differ."""
    answers = [one[editor].get((read, split), {}).get("answers") for editor in asked]
    if not all(answers) or any({*each} != {*answers[0]} for each in answers):
        return None
    told_KB3 = torch.tensor([[each[edit] for edit in answers[0]] for each in answers], dtype=torch.float64)
    probability_KB, right_KB, moved_KB = told_KB3.unbind(2)
    return seen(moved_KB, probability_KB), right_KB.T.bool(), list(answers[0])
