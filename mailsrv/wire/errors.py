"""The one failure of every wire grammar: these bytes are not what the grammar allows, from this offset on."""

from __future__ import annotations


class WireError(Exception):
    """`offset` counts octets from the start of what was parsed; `tag` is the command's tag where it was read
    already.
    """

    def __init__(self, message: str, offset: int = 0, tag: str | None = None) -> None:
        super().__init__(message)
        self.message, self.offset, self.tag = message, offset, tag


class BadCharset(WireError):
    """SEARCH in a character set that is not offered (RFC 3501 6.4.4, BADCHARSET)."""
