"""Secrets in addresses and texts: whether there is one, and the text without it."""

from __future__ import annotations

import re

__all__ = ["has_secret", "without_secrets"]

#: Signed addresses let in whoever reads them.
_QUERY = re.compile(r"(\b(?!file:)\w{1,30}://(?:(?!://)[^\s?'\"]){1,4000})\?[^\s'\"]+")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
#: The names of what signs an address or lets its holder in, wherever they stand.
_PARAMETER = re.compile(
    r"""(?<![\w-])(
        (?: (?:Shared-?)?Access-?Signature | signature(?:Provided)? | sig | AWSAccessKeyId
          | (?:\w*_)? (?:tracking|session|security|access|id|refresh|auth|triton|hf)_token | token
        ) (?:=|%3D) ['"]?
      | X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token) (?:=|%3D|['"]?:\s*) ['"]?
      | ['"] (?:\w*_)? token ['"]: \s* ['"]
      | (?:[\w-]*[_-])? (?: api[_-]?key | password | passwd | pwd | (?:client_)?secret
          | (?:secret_?|shared_?)? access_?key | secret_?key | account_?key
        ) (?: ['"]? \s* [=:] \s* ['"]? | %3D | > )
      | authorization ['"]? [:=] \s* ['"]? (?:\w+\ )?
    ) (?: (?<=')[^'\n]+ | (?<=")[^"\n]+ | [^\s&;,'"<>)]+)""",
    re.IGNORECASE | re.VERBOSE,
)
#: What HTTP libraries quote of a header that they do not send, and of one that they did.
_HEADER = re.compile(
    r"""(header\ value:?\s*)b?(['"]).*?\2
      | \b(Bearer|Basic)\ +(?!auth|token|scheme|credential)[^\s'",;)]+""",
    re.VERBOSE | re.DOTALL,
)
#: `user:password@host`, given where an address was meant; neither `models:/m@a` nor `arn:…`.
_SCHEMELESS = re.compile(
    r"""(?<![^\s'"(<=,])
    (?!arn:|file:)[^\s:/@'"(<=,]{1,200} : [^\s/\\@'"][^\s@'"]{0,200} @ (?=[\w\[])(?!sha256:)""",
    re.VERBOSE,
)
#: Whose user's name alone lets in: it is a token.
_TOKEN_SCHEME = re.compile(r"(.*\+)?(https?|wss?|grpcs?|mlflow-artifacts)(\+.*)?", re.IGNORECASE)
#: `container@account`: no name of a user.
_CONTAINERS = frozenset({"abfs", "abfss", "wasb", "wasbs"})
#: `scope:prefix@databricks` and `profile@databricks`: where credentials lie, not what they are.
_PROFILES = frozenset({"models", "runs", "dbfs"})
#: Such as `postgresql+psycopg2`; their passwords may hold what ends a host elsewhere.
_DATABASE = re.compile(r".*(sql|oracle)|(?!git).*\+", re.IGNORECASE)
_AUTHORITY_END = re.compile(r"[/?#,'\"]")
_REMOTE = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+:")
#: How far from its address's beginning the end of a password with spaces is looked for.
_LONGEST_PASSWORD = 200
_LONGEST_ADDRESS = 4000


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
    masked = _QUERY.sub(r"\1", "".join(told) + text[at:])
    masked = _SCHEMELESS.sub("***@", _PARAMETER.sub(r"\1***", masked))
    return _HEADER.sub(lambda found: f"{found[1] or found[3] + ' '}***", masked)


def _user_length(scheme: str, rest: str) -> int:
    """How long `user:password@` is at the beginning of what follows a scheme; 0 without one."""
    if scheme.lower() in _CONTAINERS or _SCHEME.match(rest):  # s3://http://host
        return 0
    word = (rest.split(maxsplit=1) or [""])[0] if rest[:1].strip() else ""
    authority = _AUTHORITY_END.split(word, maxsplit=1)[0]
    user, at, host = authority.rpartition("@")
    if host == "databricks" and scheme.lower() in _PROFILES:
        return 0
    if at and ":" not in user:  # a token; elsewhere a mere name, as in sftp://
        return len(user) + 1 if _TOKEN_SCHEME.fullmatch(scheme) else 0
    if at:
        return word.rindex("@") + 1
    return _odd_password_length(scheme, word, authority, rest)


def _odd_password_length(scheme: str, word: str, authority: str, rest: str) -> int:
    """The same where the password has what ends an authority: a slash, a quote, a space."""
    name, colon, port = authority.rstrip(".:;)").rpartition(":")
    if not colon or name.startswith(("[", "arn:")):
        return 0
    if not port.isdigit():
        return word.rfind("@") + 1 or rest[:_LONGEST_PASSWORD].partition("\n")[0].rfind("@") + 1
    # a port, or the beginning of the password
    if _DATABASE.match(scheme):
        return word.rfind("@") + 1
    if scheme.lower() == "s3":  # no bucket's name has an @
        return "/".join(word.split("/", 2)[:2]).rfind("@") + 1
    return 0
