"""What a chain leaves on disk: its lines, under a name that its settings are part of, and while it goes on the host that it goes on from.

Shape letters: N facts, D hidden width, F MLP width.
"""

import glob
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoder.config.commands import SequentialConfig
from decoder.config.editors import own_settings
from decoder.config.identity import as_today
from decoder.config.options import settings
from decoder.utils.files import short_hash, whole_file, write_text

if TYPE_CHECKING:
    from torch import Tensor

GROUPS = ("host", "facts", "keys", "splits")
UNREAD = {"splits.spelt_per_relation"}  # of decoders alone
OWN = ("edits.editor", "edits.key_tokens", "edits.objects", "edits.seed", "at", "text_tokens", "broken_from")


@dataclass(frozen=True)
class Reached:
    """A host that the first so many facts were planted in, and what its editor keeps of them."""

    facts: int
    passed_over: int
    weight_DF: "Tensor"
    kept_NF: "Tensor | None"


class Kept:
    """The files of one chain. They are told from those of other settings by the hash in their name, and by what their lines record.

    Attributes:
        settings: what the lines depend on beside host, layer and seed, by dotted name.
        file: JSON lines, there once the chain is through.
    """

    def __init__(self, cfg: SequentialConfig) -> None:
        (layer,) = cfg.edits.layers
        own = {*OWN, *(f"edits.{field.name}" for field in own_settings(cfg.edits))}
        if cfg.edits.facts_per_host > 1:
            own.add("edits.facts_per_host")  # chains of before have none, and keep the hash in their name
        read = [key for key, _ in settings(cfg) if (key.partition(".")[0] in GROUPS or key in own) and key not in UNREAD]
        self.settings = {key: attrgetter(key)(cfg) for key in read}
        if not (cfg.host.is_pocket or cfg.keys.text):
            self.settings["neutral_text"] = "self"  # chains of before were looked at with the text for the keys
        self.stem = f"{cfg.host.name}-{cfg.edits.editor}-e{layer}-s{cfg.seed}"
        self.file = Path(cfg.out) / f"{self.stem}-{short_hash(self.settings)}.jsonl"

    @cached_property
    def partial(self) -> Path:
        """The lines of a chain that is not through."""
        return self.file.with_suffix(".jsonl.partial")

    @cached_property
    def state(self) -> Path:
        return self.file.with_suffix(".safetensors")

    def finished(self) -> Path | None:
        """The lines of these settings if they are all there; an earlier version may have given them another hash."""
        if self.file.exists():
            return self.file
        for file in sorted(self.file.parent.glob(f"{glob.escape(self.stem)}-*.jsonl")):
            # One that is damaged is refused where it is reported.
            with suppress(OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
                if as_today(_lines(file)[0]["settings"]) == as_today(self.settings):
                    return file
        return None

    def left_by_a_kill(self) -> tuple[list[dict[str, Any]], Reached | None]:
        """The lines and the host of the last look at a chain that was killed; none of either where it has to begin."""
        if not (self.partial.exists() and self.state.exists()):
            return [], None
        from safetensors import SafetensorError, safe_open

        # What is damaged is no more than what was never written: the chain begins anew.
        with suppress(SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError):
            with safe_open(self.state, "pt") as tensors:
                counts = {name: int(count) for name, count in tensors.metadata().items()}
                kept = {"kept_NF": None} | {name: tensors.get_tensor(name) for name in tensors.keys()}
            reached = Reached(**counts, **kept)
            # Lines are written first: the last may be one further.
            lines = [line for line in _lines(self.partial) if line["facts"] <= reached.facts]
            if lines and lines[-1]["facts"] == reached.facts:
                return lines, reached
        return [], None

    def write(self, lines: Sequence[Mapping[str, Any]], reached: Reached) -> None:
        from safetensors.torch import save_file

        write_text(self.partial, "".join(json.dumps(line) + "\n" for line in lines))
        tensors = {name: tensor for name in ("weight_DF", "kept_NF") if (tensor := getattr(reached, name)) is not None}
        counts = {"facts": str(reached.facts), "passed_over": str(reached.passed_over)}
        with whole_file(self.state) as unfinished:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, counts)

    def finish(self) -> None:
        """The lines take their place; nothing is left to go on from."""
        self.partial.replace(self.file)
        self.state.unlink(missing_ok=True)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
