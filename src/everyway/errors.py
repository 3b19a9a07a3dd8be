"""The one base of every error that says, in one line, how it is mended.

On the command line such an error is that line and an exit code; any other exception is a fault of
ours and stays a traceback.
"""

from __future__ import annotations


class EverywayError(Exception):
    """What a caller or a user can mend.

    exit_code: of the command line; 2 where what was asked for is wrong, 1 where a file or disk is.
    """

    exit_code = 2


class UsageError(EverywayError, ValueError):
    """Something asked for that there is not, or that cannot be."""
