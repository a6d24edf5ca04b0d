"""Text without its secrets: what may be shown, logged and stored of an address that holds a password."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

_HIDDEN = "***"
# a password may hold any letter, badly written also "/" and "@": all up to the last "@" of the word goes
_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*:)[^\s'\"<>]*@", re.IGNORECASE)
_TOKEN_AS_USER = re.compile(r"(\b(?:git\+)?https?://)[^\s/@:'\"<>]+@", re.IGNORECASE)  # https://ghp_...@github.com
_NAMED = re.compile(
    r"\b((?:[a-z0-9_-]*(?:password|passwd|secret|token|api_?key|access_?key|signature|credential)|pwd|sig)=)"
    r"('[^']*'|\"[^\"]*\"|[^&;,\s'\"]+)",
    re.IGNORECASE,
)
_HEADER = re.compile(r"(\b(?:bearer|basic) )[A-Za-z0-9+/._~=-]{8,}", re.IGNORECASE)


def redacted(text: str) -> str:
    """Return a text with ``***`` for each password, token and key in it: in addresses, ``name=value`` pairs and headers.

    What holds no secret comes back as it is; a text that was redacted before does not change again.
    """
    text = _PASSWORD.sub(rf"\1{_HIDDEN}@", text)
    text = _TOKEN_AS_USER.sub(rf"\1{_HIDDEN}@", text)
    text = _NAMED.sub(rf"\1{_HIDDEN}", text)
    return _HEADER.sub(rf"\1{_HIDDEN}", text)


def reason_of(error: BaseException, longest: int = 300) -> str:
    """Return the first line of what an error says, without secrets; its kind, where it says nothing."""
    lines = str(error).strip().splitlines()
    return redacted(lines[0])[:longest] if lines else type(error).__name__


def without_credentials(address: str) -> str:
    """Return an address without its user, password and token: what may be kept, and connected with by who has them."""
    parts = urlsplit(address)
    return address if "@" not in parts.netloc else urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
