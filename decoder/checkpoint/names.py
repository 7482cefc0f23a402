"""Under which name a file holds a tensor of a model. Nothing here imports torch."""

from collections.abc import Collection

from decoder.families import FAMILIES

RENAMED = tuple(dict.fromkeys(pair for family in FAMILIES.values() for pair in family.renamed))


def find_name(name: str, names: Collection[str]) -> str | None:
    """The one of `names` for a tensor of the model, also where a wrapper's prefix was added or the model's own was left out."""
    for ours, theirs in (("", ""), *RENAMED):
        if name.startswith(ours) and (other := theirs + name.removeprefix(ours)) in names:
            return other
    short = name.partition(".")[2]
    found = [own for own in names if own == short or own.endswith(f".{name}")]
    return found[0] if len(found) == 1 else None


def find_weight(module: str, names: Collection[str]) -> str | None:
    """The one of `names` for the weight of a module, also where it bears the module's own name."""
    return find_name(f"{module}.weight", names) or find_name(module, names)
