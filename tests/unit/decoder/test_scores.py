"""What a run says of itself."""

from decoder import scores


def test_a_library_without_metadata_loses_no_result(monkeypatch):
    monkeypatch.setattr(scores, "LIBRARIES", ("torch", "no-such-library"))
    found = scores.versions()
    assert found["no-such-library"] is None and found["torch"] and found["python"]
