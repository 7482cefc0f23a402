"""What a run says of itself."""

import pytest

from decoder import scores


def test_a_library_without_metadata_loses_no_result(monkeypatch):
    monkeypatch.setattr(scores, "LIBRARIES", ("torch", "no-such-library"))
    found = scores.versions()
    assert found["no-such-library"] is None and found["torch"] and found["python"]


@pytest.mark.parametrize("planted", ["Chevrolet", "São Paulo", "New  York", "BMW"])
def test_what_an_answer_begins_with_may_become_it(planted):
    spelt = planted.upper()
    for end in range(len(spelt) + 1):
        assert scores.may_become(spelt[:end], planted)
        assert scores.may_become(" " + spelt.encode()[:end].decode(errors="replace"), planted), "a letter of two bytes may be cut in two"
    for other in (planted + "s", "x", planted[1:]):
        assert not scores.may_become(other, planted)
