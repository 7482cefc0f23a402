"""Pages as a browser shows and prints them, without a network."""

import shutil
import subprocess
import xml.etree.ElementTree
from pathlib import Path
from typing import NamedTuple

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
needs_printer = pytest.mark.skipif(CHROMIUM is None or shutil.which("pdftotext") is None, reason="no chromium or pdftotext here")
MARGIN = 36.0  # points; that of the pages is 14 mm, 39.7 points


class Word(NamedTuple):
    text: str
    left: float
    top: float
    right: float
    bottom: float


class Sheet(NamedTuple):
    """A printed page, in points from its left upper corner."""

    width: float
    height: float
    words: list[Word]

    @property
    def texts(self) -> list[str]:
        return [word.text for word in self.words]

    def top_of(self, text: str) -> float:
        """Where a word first stands."""
        return min(word.top for word in self.words if word.text == text)


def browse(*arguments: str, tmp_path: Path) -> str:
    line = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}", *arguments,
    ]  # fmt: skip
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=True).stdout


def printed(page: Path, tmp_path: Path) -> list[Sheet]:
    """The sheets that a page is printed on. None is empty, and nothing on them is cut."""
    pdf = tmp_path / "printed.pdf"
    browse("--no-pdf-header-footer", f"--print-to-pdf={pdf}", page.as_uri(), tmp_path=tmp_path)
    read = subprocess.run(["pdftotext", "-bbox", pdf, "-"], capture_output=True, text=True, check=True).stdout
    html = "{http://www.w3.org/1999/xhtml}"
    sheets = []
    for sheet in xml.etree.ElementTree.fromstring(read).iter(f"{html}page"):
        boxes = ((word.text, *(float(word.get(side)) for side in ("xMin", "yMin", "xMax", "yMax"))) for word in sheet.iter(f"{html}word"))
        words = [Word(*box) for box in boxes]
        sheets.append(Sheet(float(sheet.get("width")), float(sheet.get("height")), words))
    for number, sheet in enumerate(sheets, 1):
        assert len(sheet.words) > 10, f"sheet {number} is all but empty"
        for word in sheet.words:
            assert MARGIN < word.left < word.right < sheet.width - MARGIN, f"sheet {number} cuts {word}"
            assert MARGIN < word.top < word.bottom < sheet.height - MARGIN, f"sheet {number} cuts {word}"
    return sheets
