"""Imports that the garbage collector does not look through."""

import gc
import sys

import pytest

from decoder.utils.errors import lasting


@pytest.fixture
def thawed():
    """Leaves the collector as it was."""
    yield
    gc.unfreeze()
    sys.modules.pop("this", None)


def test_what_is_imported_is_frozen_and_the_collector_is_back(thawed, capsys):
    frozen = gc.get_freeze_count()
    with lasting():
        assert not gc.isenabled()
        import this  # noqa: F401  a module that nothing else imports
    assert gc.isenabled() and gc.get_freeze_count() > frozen


def test_nothing_is_frozen_where_nothing_is_imported(thawed):
    frozen = gc.get_freeze_count()
    with lasting():
        left = [object()]
        left.append(left)
    assert gc.get_freeze_count() == frozen


def test_a_collector_that_was_off_stays_off(thawed):
    gc.disable()
    try:
        with lasting():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_collector_is_back_after_a_failed_import(thawed):
    with pytest.raises(ImportError), lasting():
        import no_such_module  # noqa: F401
    assert gc.isenabled()
