"""The editors by name, and of each the settings that its edits depend on: what `edits.` holds beside what all editors share."""

from collections.abc import Iterator
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Literal

from decoder.config.options import option
from decoder.utils.errors import UserError


@dataclass
class EditsConfig:
    """What all editors share. The settings that a subclass adds are those its edits depend on: a store's manifest holds them."""

    module: ClassVar[str]
    """File of data/editors that has the editor's code."""

    editor: str = option("rome", "method that plants the edits", lambda: "|".join(EDITORS))
    layer: int = option(1, "edited layer: 0-based block whose MLP down-projection carries the edit")
    batch_size: int = option(64, "edits optimised together; halved where memory does not hold them", least=1)
    shard_size: int = option(256, "edits in a shard of the store; a killed run resumes at the next shard", least=1)
    objects: Literal["relation", "facts", "words", "mixed"] = option(
        "relation",
        "training edits plant objects of their relation, of any relation (facts), also common nouns and names (words), or half of each",
    )
    key_tokens: int = option(60000, "tokens of text for the keys' second moment", least=1)
    seed: int = option(0, "seed of contexts, of the text for the keys, and of which objects are planted")

    def check(self) -> None:
        """Raises UserError on what bounds cannot say."""


@dataclass
class WhitenedConfig(EditsConfig):
    """Of editors that whiten their keys by statistics of a text: the manifest says of which."""

    ridge: Any = option(0.03, "added to the keys' second moment: 0, a fraction of its largest eigenvalue, or `identity`", "float|identity")

    def check(self) -> None:
        if self.ridge != "identity" and (isinstance(self.ridge, bool) or not isinstance(self.ridge, int | float)):
            raise UserError(f"edits.ridge={self.ridge}: expected `identity` or a number from 0 up")


@dataclass
class RomeConfig(WhitenedConfig):
    module = "rome"

    contexts: int = option(5, "contexts a key is averaged over, the bare prompt among them", least=1)
    steps: int = option(30, "most Adam steps of the value optimisation", least=1)
    lr: float = option(0.3, "learning rate of the value optimisation")
    clamp: float = option(5.0, "largest norm of the value change, as a multiple of the clean output's norm")
    decay: float = option(1e-3, "weight of the norm penalty on the value change")
    kl: float = option(8.0, "weight of the KL term that keeps the subject's essence")
    stop_loss: float = option(0.05, "an edit stops when its loss falls below this")
    precision: Literal["float32", "tf32", "bf16"] = option("float32", "of the value optimisation's matrix products; tf32 on GPUs only")


EDITORS: dict[str, type[EditsConfig]] = {"rome": RomeConfig, "r-rome": RomeConfig, "p-rome": RomeConfig}
"""Every editor by name, with its settings. Its code is in the file of data/editors that they name, under `EDITORS`."""


def own_settings(config: EditsConfig | type[EditsConfig]) -> Iterator[Field]:
    """The settings that the edits of one editor depend on."""
    shared = {field.name for field in fields(EditsConfig)}
    return (field for field in fields(config) if field.name not in shared)
