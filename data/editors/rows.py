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
    return _row(host, template, ids, lookup, targets)


def text_row(host: Host, prompt: str, targets: list[int]) -> Row:
    """The row of a whole prompt, for reading it only: it has no subject to edit at.

    Raises:
        ValueError: the prompt is empty, or the row is longer than the host can read.
    """
    ids = host.text_ids(prompt)
    if not ids:
        raise ValueError(f"prompt {prompt!r} tokenises to nothing")
    return _row(host, prompt, ids, len(ids) - 1, targets)


def _row(host: Host, prompt: str, ids: list[int], lookup: int, targets: list[int]) -> Row:
    longest = host.longest_input
    if longest and len(ids) + len(targets) > longest:
        raise ValueError(f"prompt {prompt!r}: {len(ids) + len(targets)} tokens, {host.name} reads {longest}")
    return Row(ids + targets[:-1], lookup, targets)
