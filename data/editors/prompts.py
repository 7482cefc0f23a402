"""Rows of tokens for an edit: a prompt with all of its target but the last token, and where in it the subject ends."""

from dataclasses import dataclass

from decoder.host import Host


@dataclass(frozen=True)
class Row:
    """A prompt with all of its target but the last token; the last `len(targets)` positions predict the targets."""

    ids: list[int]
    lookup: int
    targets: list[int]

    @property
    def suffix(self) -> int:
        return len(self.ids) - self.lookup

    @property
    def scored(self) -> range:
        """Positions that predict the targets."""
        return range(len(self.ids) - len(self.targets), len(self.ids))


def target_ids(host: Host, text: str) -> list[int]:
    """Tokens that state an object: its own and the host's terminator.

    Raises:
        ValueError: the object has no token.
    """
    ids = host.object_ids(text)
    if not ids:
        raise ValueError(f"object {text!r} tokenises to nothing")
    return ids if host.terminator_id is None else [*ids, host.terminator_id]


def prompt_row(host: Host, template: str, subject: str, targets: list[int]) -> Row:
    """The row of a filled template.

    Raises:
        ValueError: the template has no place for the subject, the subject is empty, or the row is longer than the host can read.
    """
    ids, lookup = host.prompt_ids(template, subject)
    check_length(host, template, len(ids) + len(targets))
    return Row(ids + targets[:-1], lookup, targets)


def check_length(host: Host, prompt: str, tokens: int) -> None:
    """Raises ValueError if a prompt with its target has more tokens than the host reads."""
    if host.longest_input and tokens > host.longest_input:
        raise ValueError(f"prompt {prompt!r}: {tokens} tokens, {host.name} reads {host.longest_input}")
