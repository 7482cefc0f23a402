"""How a program ends when the user, not the code, has to do something: one line on stderr, no traceback."""

import difflib
import functools
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
DEBUG = "PALIMPSEST_DEBUG"
TERMINATED = 143  # what a shell gives for a program that SIGTERM ended
CLOSED_PIPE = 141  # what a shell gives for a program that SIGPIPE ended
SHOWN = 5  # names in a message


class UserError(Exception):
    """What came, what was expected and what to do, in one line."""


def run_command(main: Callable[P, T]) -> Callable[P, T]:
    """Decorates a program's `main`: bad input exits 2 with one line on stderr, Ctrl-C exits 130, SIGTERM 143.

    `PALIMPSEST_DEBUG=1` shows the traceback above the line. Other exceptions pass: they are ours to mend.
    """

    @functools.wraps(main)
    def command(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with _sigterm_as_exit():
                return main(*args, **kwargs)
        except BrokenPipeError:
            leave_closed_pipe()
            sys.stderr.write("error: standard output was closed before everything was said\n")
            raise SystemExit(CLOSED_PIPE) from None
        except (UserError, ValueError, OSError, KeyboardInterrupt) as error:
            raise SystemExit(_told(error)) from None
        except SystemExit as stop:
            if stop.code == TERMINATED:
                sys.stderr.write(line_of(stop) + "\n")
            raise

    return command


@contextmanager
def starting() -> Iterator[None]:
    """Around what a program imports before its `main` can begin: Ctrl-C ends it as it does inside `run_command`."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise SystemExit(_told(error)) from None


def debugging() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


def leave_closed_pipe() -> None:
    """From now on what is printed goes nowhere, so that Python does not stumble over the closed pipe again, nor at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def is_interruption(error: BaseException) -> bool:
    """Whether a user or the machine ended the program: nothing is wrong with what it was doing."""
    return isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == TERMINATED)


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Inside the block SIGTERM unwinds the program as Ctrl-C does, so that its processes and files are seen to."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(*_: Any) -> None:
    raise SystemExit(TERMINATED)


def _told(error: BaseException) -> int:
    """Says on stderr what ended the program; its exit code."""
    if debugging():
        traceback.print_exc()
    sys.stderr.write(line_of(error) + "\n")
    return 130 if isinstance(error, KeyboardInterrupt) else 2


def line_of(error: BaseException) -> str:
    """What a program that an error ends says of it."""
    if is_interruption(error):
        return "interrupted" if isinstance(error, KeyboardInterrupt) else "terminated"
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"error: {error.filename}: no such file or folder"
    if isinstance(error, IsADirectoryError) and error.filename:
        return f"error: {error.filename} is a folder; give a file"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"error: {error.filename}: {error.strerror.lower()}"
    message = " ".join(str(error).split())
    if isinstance(error, UserError):
        return f"error: {message}"
    label = "" if type(error) is ValueError and message else f"{type(error).__name__}: "
    return f"error: {label}{message} ({DEBUG}=1 shows the traceback)"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What exists, the nearest match first: "did you mean 'rome'? Known: rome, r-rome"."""
    known = sorted(known)
    nearest = [other for other in known if other.startswith(f"{name}_")] or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    question = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{question}known: {', '.join(known)}"


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


@contextmanager
def lasting() -> Iterator[None]:
    """Around imports: the garbage collector leaves what they make alone, now, later and when the program ends.

    torch, Lightning and transformers make half a million of them that live as long as the program. Looking through them takes a fifth of
    the time to import them, and more than a second at the end.
    """
    before, collects = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # A later run of a grid imports nothing, and what the one before it left must go.
        if len(sys.modules) > before:
            gc.freeze()
        if collects:
            gc.enable()
