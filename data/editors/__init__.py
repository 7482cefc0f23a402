"""The editors by name, and what every one of them can do. An editor's code is imported when it is asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from decoder.config.editors import EDITORS, EditsConfig
from decoder.utils.errors import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from data.facts.fact import EditRequest
    from data.keys.cache import KeyStatistics
    from data.keys.whiten import Solver
    from decoder.edit import LayerEdits, LowRankEdit, RankOneEdit
    from decoder.host import Host


@dataclass(frozen=True)
class Edited:
    """The edits that could be made, in the order of the requests.

    Attributes:
        kept: index into the requests of each edit.
        edits: the factors, float32 on the CPU, of several layers by layer; of an edit that they do not explain, the strongest.
        skipped: (edit_id, reason) of the requests that could not be made.
        matrices: place of each edit that its factors do not explain -> W'_V.
    """

    kept: list[int]
    edits: "RankOneEdit | LowRankEdit | LayerEdits"
    skipped: list[tuple[str, str]]
    matrices: "dict[int, Tensor]" = field(default_factory=dict, kw_only=True)


class Editor(Protocol):
    """Makes edits of a host, which is bit-identical after every call.

    Attributes:
        whiten: k (B, F) -> the direction of the edit at that key, in float64 on the CPU; None if it is the key's own.
    """

    whiten: "Solver | None"

    @classmethod
    def prepare(cls, host: "Host", cfg: EditsConfig, texts: Sequence[str], statistics: "Mapping[int, KeyStatistics]") -> "Editor":
        """The editor for `cfg.layer`, or for all of `cfg.layers` if its settings say `spreads`.

        Args:
            cfg: of the class that `EDITORS` has under the editor's name.
            texts: like those the host was trained on.
            statistics: of each layer's keys, for editors that whiten them; empty where the settings ask for none.
        """

    def edit(self, requests: "Sequence[EditRequest]", advance: Callable[[int], None]) -> Edited:
        """Makes the edits; `advance` is told how many more requests are done."""

    # An editor whose settings say `plants_several` has `edit_together(hosts, advance)` too, with the requests of each host; one whose
    # settings say `spreads` has `whiteners`, a `whiten` for each layer.


def load_editor(name: str) -> type[Editor]:
    """The class of an editor.

    Raises:
        ValueError: no editor has that name.
    """
    if name not in EDITORS:
        raise ValueError(f"edits.editor={name!r} is unknown; {did_you_mean(name, EDITORS)}")
    return import_module(f"data.editors.{EDITORS[name].module}").EDITORS[name]
