"""Auditing a host while it is perturbed, against what it was: as a saved checkpoint and its base would be, without files."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from data.perturb.recipe import SAVED_AS, Recipe, perturbed
from decoder.audit.candidates import Candidates
from decoder.audit.evidence.difference import Difference, difference
from decoder.audit.evidence.examine import Examined, examine
from decoder.audit.rows.keys import usable_layers
from decoder.audit.verdict import Compared
from decoder.host import Host


class Auditor:
    """Audits a host as it is at the moment, against what it was when this was made.

    Args:
        precisions: in which the host will have been kept.
        templates: sentences by relation that it is asked about names that nearly stand out; without them it is not asked.
    """

    def __init__(
        self, host: Host, precisions: Iterable[str], names: Sequence[str], templates: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.host, self.base, self.stored, self.templates = host, _weights(host), {}, templates
        self.candidates = Candidates(host, names)
        self.layers = {f"{host.module_path(layer)}.weight": layer for layer in usable_layers(host)}
        for precision in precisions:
            with perturbed(host, Recipe(precision=precision)):
                self.stored[precision] = _weights(host)

    def audit(self, precision: str, absent: str | None = None) -> tuple[Examined, Compared]:
        """Both kinds of evidence; `absent` is taken off the list."""
        compared = Compared([*self.differences(precision)], self.layers, precision != "float32")
        candidates = self.candidates.without(absent) if absent else self.candidates
        return examine(self.host, candidates, compared, templates=self.templates), compared

    def differences(self, precision: str) -> Iterable[Difference]:
        """As `decoder.audit.scan.differences` of a file of that precision."""
        is_blocks = precision not in ("float32", "bf16", "fp16")
        step = 0.0 if is_blocks else torch.finfo(SAVED_AS.get(precision, torch.float32)).eps
        for name, now in self.host.model.named_parameters():
            own, stored, is_down = self.base[name], self.stored[precision][name], name in self.layers
            yield difference(
                name,
                [(now.detach(), stored, own)],
                is_matrix=now.dim() == 2 and len(now) != len(self.host.tokenizer),
                step=step,
                is_blocks=is_blocks and now.dim() == 2,
                is_down=is_down,
                transposed=is_down and self.host.stored_transposed(self.layers[name]),
            )

    def base_DF(self, layer: int) -> Tensor:
        """W_V as it was."""
        weight = self.base[f"{self.host.module_path(layer)}.weight"]
        return weight.T if self.host.stored_transposed(layer) else weight


def _weights(host: Host) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in host.model.named_parameters()}
