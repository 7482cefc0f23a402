"""Under which name a file holds a tensor of a model. Nothing here imports torch."""

from collections.abc import Collection

from decoder.families import FAMILIES

# Parts that wrappers of torch and of PEFT put anywhere into a name.
WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module", "module", "base_layer"}
PEFT = "base_model.model."
RENAMED = tuple(dict.fromkeys(pair for family in FAMILIES.values() for pair in family.renamed))


def unwrapped(name: str) -> str:
    """A tensor's name without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS).removeprefix(PEFT)


def find_name(name: str, names: Collection[str]) -> str | None:
    """The one of `names` for a tensor of the model, also where wrappers added to it or the model's own prefix was left out."""
    known = [theirs + name.removeprefix(ours) for ours, theirs in (("", ""), *RENAMED) if name.startswith(ours)]
    if exact := next((other for other in known if other in names), None):
        return exact
    short, bare = name.partition(".")[2], {own: unwrapped(own) for own in names}
    found = [own for own in names if bare[own] in known] or [own for own in names if bare[own] == short or bare[own].endswith(f".{name}")]
    return found[0] if len(found) == 1 else None


def find_weight(module: str, names: Collection[str]) -> str | None:
    """The one of `names` for the weight of a module, also where it bears the module's own name."""
    return find_name(f"{module}.weight", names) or find_name(module, names)
