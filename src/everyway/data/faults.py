"""What is wrong with a file of data, in one line that can be printed anywhere."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from PIL import UnidentifiedImageError

from everyway.errors import UsageError

Named = tuple[str, str]
"""(name of a file, or of a line in it; why it is not used)."""


class FolderError(UsageError):
    """Data that cannot be read; the message is one line that names the file."""


def printable(name: str | Path) -> str:
    """A file's name in one line: bytes that are not UTF-8 and control characters are escaped."""
    return "".join(
        repr(c)[1:-1].replace("\\udc", "\\x")
        if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
        else c
        for c in str(name)
    )


def reason(error: Exception) -> str:
    """Why a file could not be read, in one line and without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    text = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return " ".join(printable(line) for line in text.split()) or type(error).__name__


def text_fault(error: Exception) -> str:
    """What is wrong with a file of text."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text; save it as UTF-8"
    return str(error) if isinstance(error, FolderError) else f"cannot be read: {reason(error)}"
