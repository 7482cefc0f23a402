"""The editors by name. The table is light: an editor's code is imported when it is asked for."""

from importlib import import_module

from decoder.utils.errors import did_you_mean

EDITORS = {"rome": "data.editors.rome:Rome", "r-rome": "data.editors.rome:RRome", "p-rome": "data.editors.rome:PRome"}


def load_editor(name: str) -> type:
    """The class of an editor.

    Raises:
        ValueError: no editor has that name.
    """
    if name not in EDITORS:
        raise ValueError(f"edits.editor={name!r} is unknown; {did_you_mean(name, EDITORS)}")
    module, attribute = EDITORS[name].split(":")
    return getattr(import_module(module), attribute)
