"""What decoders of one editor each read together, a gate choosing among them, from the lines that `benchmarks/editors.py` writes.

Shape letters: B edits, K decoders, E features.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from decoder.export.gate import features, fit_gate
from decoder.scores import VAL_SPLITS, share

ANSWER = 3  # numbers: probability, right or not, moved
Read = Mapping[tuple[str, str], Mapping[str, Any]]
"""What a decoder reads, by editor and split."""


def gated(lines: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """What decoders of one editor each read together, of all and of all but one, a gate choosing among them edit by edit.

    The gate is fitted on the validation edits of the same editors. It takes lines with `answers`: edit -> probability, whether the answer
    is right, and how far the edit moved the decoder. Decoders that read other edits are not put together.
    """
    found: dict[tuple[Any, ...], dict[str, dict[tuple[str, str], Mapping[str, Any]]]] = {}
    for line in lines:
        if len(line["train"]) == 1 and all(len(answer) == ANSWER for answer in line.get("answers", {"": ()}).values()):
            same = found.setdefault((line["host"], line["layer"], line["seed"]), {})
            same.setdefault(line["train"][0], {})[line["read"], line["split"]] = line
    for one in found.values():
        editors = next(iter(next(iter(one.values())).values()))["editors"]
        for asked in (editors, *([other for other in editors if other != editor] for editor in editors)):
            if len(asked) > 1 and {*asked} <= {*one}:
                yield from _together(one, asked)


def _together(one: Mapping[str, Read], asked: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The lines of some editors' decoders and their gate."""
    validation = [seen for read in asked for split in VAL_SPLITS if (seen := _seen(one, asked, read, split))]
    if not validation:
        return
    gate = fit_gate(asked, *(torch.cat(parts) for parts in zip(*validation, strict=True)))
    for (read, split), line in one[asked[0]].items():
        if split not in VAL_SPLITS and (seen := _seen(one, asked, read, split)):
            evidence_BE, right_BK = seen
            hits = right_BK.gather(1, gate.chances(evidence_BE).argmax(1, keepdim=True)).flatten().tolist()
            told = {name: line[name] for name in ("host", "layer", "editors", "seed", "read", "split", "n")}
            told |= {name: sum(one[editor][read, split][name] for editor in asked) for name in ("train_edits", "steps")}
            yield told | {"train": asked, "gated": True, "exact_match": share(hits)}


def _seen(one: Mapping[str, Read], asked: Sequence[str], read: str, split: str) -> tuple[Tensor, Tensor] | None:
    """What a gate sees (B, E) of decoders that read the same edits, and which of them (B, K) are right; None where edits differ."""
    answers = [one[editor].get((read, split), {}).get("answers") for editor in asked]
    if not all(answers) or any({*each} != {*answers[0]} for each in answers):
        return None
    told_KB3 = torch.tensor([[each[edit] for edit in answers[0]] for each in answers], dtype=torch.float64)
    probability_KB, right_KB, moved_KB = told_KB3.unbind(2)
    of_each = zip(moved_KB, probability_KB, strict=True)
    columns = [column for moved_B, probability_B in of_each for column in features(moved_B, probability_B)]
    return torch.stack(columns, dim=1), right_KB.T.bool()
