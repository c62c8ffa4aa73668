"""How the command lines of this project word things."""

from __future__ import annotations

import re
import reprlib

__all__ = [
    "as_line",
    "brief",
    "has_secret",
    "human_size",
    "one_line",
    "printable",
    "shortened",
    "without_secrets",
]

#: Signed addresses let in whoever reads them.
_QUERY = re.compile(r"(\b(?!file:)\w{1,30}://[^\s?'\"]{1,4000})\?[^\s'\"]+")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
#: The names of what signs an address or lets its holder in, wherever they stand.
_PARAMETER = re.compile(
    r"""(?<![\w-])(
        (?: (?:Shared-?)?Access-?Signature | signature | sig | AWSAccessKeyId | AccountKey
          | SharedAccessKey | (?:access_|id_|refresh_)?token | api_?key | client_secret | secret
          | password | passwd | pwd ) (?:=|%3D) ['"]?
      | X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token) (?:=|%3D|['"]?:\s*) ['"]?
      | authorization ['"]? [:=] \s* ['"]? (?:\w+\ )?
    ) [^\s&;,'"<>)]+""",
    re.IGNORECASE | re.VERBOSE,
)
#: `container@account`: no name of a user.
_CONTAINERS = frozenset({"abfs", "abfss", "wasb", "wasbs"})
#: Such as `postgresql+psycopg2`; their passwords may hold what ends a host elsewhere.
_DATABASE = re.compile(r".*(sql|oracle)|.*\+", re.IGNORECASE)
_AUTHORITY_END = re.compile(r"[/?#,'\"]")
_REMOTE = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+:")
#: How far from its address's beginning the end of a password with spaces is looked for.
_LONGEST_PASSWORD = 200
_LONGEST_ADDRESS = 4000


def brief(value: object) -> str:
    """A value as Python shows it, cut short: a few lines of YAML can stand for gigabytes."""
    shown = reprlib.Repr()
    shown.maxlevel = 2
    return shown.repr(value)


def one_line(exc: BaseException) -> str:
    """An error as one line, never an empty one, fit for a terminal and without a secret."""
    return as_line(str(exc)) or type(exc).__name__


def as_line(text: str) -> str:
    """A text as one line, fit for a terminal and without a secret."""
    return printable(without_secrets(" ".join(text.split())))


def printable(text: str) -> str:
    """The text, what is not printable escaped: others choose some of the names in it."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def shortened(text: str, longest: int = 1000) -> str:
    """The text, or its beginning."""
    return text if len(text) <= longest else f"{text[:longest]}…"


def has_secret(uri: str) -> bool:
    """Whether an address lets in who reads it: by a user's name and password, or by a signature.

    Args:
        uri: all of it. What has no scheme, or `file:`, is a path, and paths may hold anything.
    """
    if not _REMOTE.match(uri):
        return False
    if any(_user_length(found[1], uri[found.end() :]) for found in _SCHEME.finditer(uri)):
        return True
    return "?" in uri or ("#" in uri and uri.startswith(("http:", "https:")))


def without_secrets(text: str) -> str:
    """The text, whatever is in it: addresses lose passwords and queries, which may be signatures.

    It is for reading; a little too much may be gone.
    """
    told, at = [], 0
    for found in _SCHEME.finditer(text):
        if found.end() < at:
            continue  # inside what was taken for a password
        length = _user_length(found[1], text[found.end() : found.end() + _LONGEST_ADDRESS])
        told += [text[at : found.end()], "***@" if length else ""]
        at = found.end() + length
    return _PARAMETER.sub(r"\1***", _QUERY.sub(r"\1", "".join(told) + text[at:]))


def _user_length(scheme: str, rest: str) -> int:
    """How long `user:password@` is at the beginning of what follows a scheme; 0 without one."""
    if scheme.lower() in _CONTAINERS or _SCHEME.match(rest):  # s3://http://host
        return 0
    word = (rest.split(maxsplit=1) or [""])[0] if rest[:1].strip() else ""
    authority = _AUTHORITY_END.split(word, maxsplit=1)[0]
    user, at, host = authority.rpartition("@")
    if at and host == "databricks":  # models://scope:prefix@databricks/…
        return 0
    if at and ":" not in user:  # a token; elsewhere a mere name, as in sftp://
        return len(user) + 1 if scheme.lower() in ("http", "https", "grpc", "grpcs") else 0
    if at:
        return word.rindex("@") + 1
    name, colon, port = authority.rstrip(".:;)").rpartition(":")
    if not colon or port.isdigit() or name.startswith(("[", "arn:")):
        return word.rfind("@") + 1 if colon and _DATABASE.match(scheme) else 0
    # a password with a slash, a quote or a space in it
    return word.rfind("@") + 1 or rest[:_LONGEST_PASSWORD].partition("\n")[0].rfind("@") + 1


def human_size(size_bytes: int) -> str:
    """Such as `1.9 GB`: decimal prefixes, as disks and MLflow's pages have them."""
    if size_bytes < 1000:  # noqa: PLR2004 - no prefix below
        return f"{size_bytes} B"
    size, units = float(size_bytes), iter("kMGTPE")
    unit = ""
    while size >= 1000:  # noqa: PLR2004 - as above
        size, unit = size / 1000, next(units)
    return f"{size:.1f} {unit}B"
