"""The editors by name, and of each the settings that its edits depend on: what `edits.` holds beside what all editors share."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import Field, dataclass, fields
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

from decoder.config.options import as_list, layers_of, option, typed
from decoder.utils.errors import UserError, did_you_mean

FURTHER = ("fluency", "portability", "efficiency")
"""What `edits.scores` may ask for."""


@dataclass
class EditsConfig:
    """What all editors share. The settings that a subclass adds are those its edits depend on: a store's manifest holds them."""

    module: ClassVar[str]
    """File of data/editors that has the editor's code."""
    plants_several: ClassVar[bool] = False
    """Whether the editor can plant several facts in one host."""
    spreads: ClassVar[bool] = False
    """Whether the editor can spread an edit over several layers."""

    editor: str = option("rome", "method that plants the edits", lambda: "|".join(EDITORS))
    layer: Any = option(
        1,
        "edited layer: 0-based block whose MLP down-projection carries the edit; MEMIT's kin spread one over several, as [0,1]",
        "int|list of int",
    )
    batch_size: int = option(64, "edits optimised together; halved where memory does not hold them", least=1)
    shard_size: int = option(256, "edits in a shard of the store; a killed run resumes at the next shard", least=1)
    objects: Literal["relation", "facts", "words", "mixed"] = option(
        "relation",
        "training edits plant objects of their relation, of any relation (facts), also common nouns and names (words), or half of each "
        "(mixed)",
    )
    key_tokens: int = option(60000, "tokens of text for the keys' second moment", least=1)
    facts_per_host: int = option(1, "facts planted in one host, of one split and without a subject twice", least=1)
    scores: list[str] = option([], f"scores beside the usual ones, which take longer: {', '.join(FURTHER)}")
    seed: int = option(0, "seed of contexts, of the text for the keys, and of which objects are planted")
    broken_from: float | None = option(
        None, "flag edits that break the host: perplexity of a text, in multiples of the clean host's, as 2; empty looks at none", least=1
    )

    @property
    def layers(self) -> list[int]:
        """The edited layers, one or several, the lowest first."""
        return as_list(self.layer)

    def check(self) -> None:
        """Raises UserError on what bounds cannot say."""
        layers = layers_of("edits.layer", self.layer)
        if len(layers) > 1 and not self.spreads:
            able = ", ".join(name for name, kind in EDITORS.items() if kind.spreads)
            raise UserError(f"edits.layer={typed(self.layer)}: {self.editor} edits one layer; several: {able}")
        if self.facts_per_host > 1 and not self.plants_several:
            able = ", ".join(name for name, kind in EDITORS.items() if kind.plants_several)
            raise UserError(f"edits.facts_per_host={self.facts_per_host}: {self.editor} plants one fact a host; several: {able}")
        for name in self.scores:
            if name not in FURTHER:
                raise UserError(f"edits.scores={name}: no such score; {did_you_mean(name, FURTHER)}")


@dataclass
class CountedConfig(EditsConfig):
    """Of editors that take the second moment of their keys over a text: the manifest says of which."""


@dataclass
class WhitenedConfig(CountedConfig):
    """Of editors that whiten their keys by that second moment."""

    ridge: Any = option(0.03, "added to the keys' second moment: 0, a fraction of its largest eigenvalue, or `identity`", "float|identity")

    def check(self) -> None:
        super().check()
        if self.ridge != "identity" and (isinstance(self.ridge, bool) or not isinstance(self.ridge, int | float)):
            raise UserError(f"edits.ridge={self.ridge}: expected `identity` or a number from 0 up")


@dataclass
class SearchConfig(EditsConfig):
    """Of editors that search for a value which makes the host say the object."""

    plants_several = True

    contexts: int = option(5, "contexts a key is averaged over, the bare prompt among them", least=1)
    steps: int = option(30, "most Adam steps of the value optimisation", least=1)
    lr: float = option(0.3, "learning rate of the value optimisation")
    clamp: float = option(5.0, "largest norm of the value change, as a multiple of the clean output's norm")
    decay: float = option(1e-3, "weight of the norm penalty on the value change")
    kl: float = option(8.0, "weight of the KL term that keeps the subject's essence")
    stop_loss: float = option(0.05, "an edit stops when its loss falls below this")
    precision: Literal["float32", "tf32", "bf16"] = option("float32", "of the value optimisation's matrix products; tf32 on GPUs only")


@dataclass
class RomeConfig(SearchConfig, WhitenedConfig):
    module = "rome"


@dataclass
class MemitConfig(SearchConfig, WhitenedConfig):
    module = "memit"
    spreads = True

    weight: float = option(5.0, "weight of the keys that are to stay (MEMIT's mom2_update_weight): the larger, the less is written")


@dataclass
class EmmetConfig(SearchConfig, WhitenedConfig):
    module = "emmet"
    spreads = True


@dataclass
class AlphaEditConfig(SearchConfig, CountedConfig):
    module = "alphaedit"
    spreads = True

    threshold: float = option(0.02, "eigenvalues of the keys' second moment below this count as null: there, and only there, is written")
    weight: float = option(1.0, "weight of the norm penalty on what is written (AlphaEdit's L2)")


@dataclass
class FineTuneConfig(EditsConfig):
    module = "fine_tune"

    loss: Literal["sentence", "target", "last"] = option(
        "sentence",
        "what Adam lowers: NLL of the sentence, of the object, or (as published) of all object tokens where the prompt ends",
    )
    steps: int = option(25, "most Adam steps", least=1)
    lr: float = option(5e-4, "learning rate")
    stop_loss: float = option(0.01, "an edit stops when its loss falls below this")
    precision: Literal["float32", "tf32", "bf16"] = option("float32", "of the matrix products above the edit; tf32 on GPUs only")
    rank: int = option(8, "an update of at most this rank is stored as factors, any other as a whole matrix", least=1)


@dataclass
class BoxedFineTuneConfig(FineTuneConfig):
    steps: int = option(50, "most Adam steps", least=1)
    box: float = option(0.0075, "how far an entry of W_V may move")


@dataclass
class TargetFineTuneConfig(FineTuneConfig):
    loss: Literal["sentence", "target", "last"] = option("target", "as of ft")


EDITORS: dict[str, type[EditsConfig]] = {
    "rome": RomeConfig,
    "r-rome": RomeConfig,
    "p-rome": RomeConfig,
    "memit": MemitConfig,
    "emmet": EmmetConfig,
    "alphaedit": AlphaEditConfig,
    "ft": FineTuneConfig,
    "ft-l": BoxedFineTuneConfig,
    "ft-m": TargetFineTuneConfig,
}
"""Every editor by name, with its settings. Its code is in the file of data/editors that they name, under `EDITORS`."""


def own_settings(config: EditsConfig | type[EditsConfig]) -> Iterator[Field]:
    """The settings that the edits of one editor depend on."""
    shared = {field.name for field in fields(EditsConfig)}
    return (field for field in fields(config) if field.name not in shared)


def settings_for(host: str | None, editor: str, hosts: Mapping[str, Any] | None, given: Container[str]) -> Mapping[str, Any]:
    """What an editor's file has for one host. What else it says is of the pocket host, as the defaults are.

    Raises:
        UserError: it has something for other hosts and nothing for this one, and no setting of the editor is given.
    """
    if not hosts or host in (None, "pocket"):
        return {}
    if host not in hosts and not any(f"edits.{field.name}" in given for field in own_settings(EDITORS[editor])):
        (nearest,) = get_close_matches(host, hosts, n=1, cutoff=0)
        raise UserError(
            f"edits={editor} host={host}: no settings for this host, and nearest by name is {nearest} (there are {', '.join(hosts)}). "
            f"Give edits.KEY=VALUE, as configs/edits/{editor}.yaml has them for {nearest}"
        )
    return hosts.get(host) or {}
