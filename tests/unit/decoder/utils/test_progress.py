"""How far something is: what is said where no bar is seen, and when."""

import pytest

from decoder.utils import progress as progress_module
from decoder.utils.progress import Pace, duration, progress


@pytest.fixture()
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_a_line_says_what_is_left_first_soon_and_then_once_a_minute(clock, capsys):
    pace = Pace("edits", 1000, done=200)
    for seconds, count in ((5, 10), (11, 10), (40, 30), (70, 30), (72, 30), (131, 50)):
        clock[0] = 100 + seconds
        pace.advance(count)
    said = [line.strip() for line in capsys.readouterr().out.splitlines()]
    # 20 in 11 s leave 780; 80 in 70 s would be said at 71 s at the earliest.
    assert said == ["edits: 220 of 1,000, about 7 min left", "edits: 310 of 1,000, about 8 min left"]


def test_what_is_over_is_not_said(clock, capsys):
    pace = Pace("edits", 4)
    clock[0] += 50
    pace.advance(4)
    assert capsys.readouterr().out == ""


def test_without_a_terminal_progress_is_lines(clock, capsys):
    with progress("tokens", 10) as advance:
        clock[0] += 30
        advance(1)
    assert capsys.readouterr().out.strip() == "tokens: 1 of 10, about 4 min left"


@pytest.mark.parametrize(("seconds", "said"), [(7.4, "7 s"), (119, "119 s"), (121, "2 min"), (7100, "118 min"), (9000, "2.5 h")])
def test_duration(seconds, said):
    assert duration(seconds) == said
