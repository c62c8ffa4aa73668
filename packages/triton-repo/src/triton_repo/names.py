"""Names: of deployments, which are ours to choose, and of models' files, which are others'."""

from __future__ import annotations

import re
import unicodedata
from typing import NewType

from triton_repo.errors import ArtifactError, InvalidNameError

__all__ = ["ModelName", "check_file_name", "check_name"]

ModelName = NewType("ModelName", str)
"""A string that `check_name` let through: one directory at the root of a model repository."""

# ASCII only, so that no look-alike of a separator passes; no leading dot or dash, so that the
# name is neither hidden nor taken for an option; "%" would be decoded by HTTP clients.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@~-]{0,199}")


def check_name(name: str) -> ModelName:
    """Let a deployment's name through, or say what is wrong with it.

    Raises:
        InvalidNameError: the name could leave its directory, or Triton or HTTP would misread it.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return ModelName(name)
    raise InvalidNameError(
        f"{name!r} cannot name a deployment: use 1 to 200 letters, digits and _ . + = @ ~ -, "
        "beginning with a letter, a digit or _",
        name=str(name),
    )


# Unicode's own table of confusables (UTS #39), and every library made from it, would refuse
# ordinary names: to it, the Katakana in "ノート" is a slash. These are its signs, not its letters.

#: What a person, or a program that normalizes, reads as a separator.
_SEPARATORS = frozenset(
    "/\\\u2044\u2215\u2216\u29f5\u29f6\u29f8\u29f9\ufe68\uff0f\uff3c\u2571\u2572"
    "\u27cb\u27cd\u2f02\u2f03\u3033\u31d3\u31d4\u1735\u2041\U0001d20f\U0001d23a\U0001d23b"
)
#: The same of one dot or two, letters among them; in the midst of a name they do no harm.
_DOTS = str.maketrans(
    {
        **dict.fromkeys("\u2024\u3002\ufe52\uff0e\uff61\u00b7\u0387\u0701\u0702\ua4f8", "."),
        **dict.fromkeys("\u2027\u2219\u22c5\u2e31\u2e33\ua78f\u30fb\uff65\u2022\u06d4", "."),
        **dict.fromkeys("\ua60e\u1427\u16eb\U00010101", "."),
        **dict.fromkeys("\u2025\u205a\ufe30\ua4fa", ".."),
    }
)
#: Shown as nothing (Unicode's Default_Ignorable_Code_Point), though some are letters, and a blank.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff\u2800]"
)
#: Joiners, which some scripts, and emoji of several, cannot be written without.
_NON_JOINER, _JOINER = "\u200c", "\u200d"
_VARIATION = "\ufe0f"
#: Parts of emoji that are no pictures by themselves: colours of skin, and the arrow of a head that
#: is shaken.
_EMOJI_PARTS = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff\u2194"


def check_file_name(name: str) -> None:
    """Let the name of one file or directory of a model through, or say what is wrong with it.

    Raises:
        ArtifactError: it holds a character that is not printable (a control character, a mark that
            turns the direction of text, a byte that is not UTF-8), or that looks like a separator;
            or all of it looks like `.` or `..`, or like nothing.
    """
    for place, character in enumerate(name):
        normal = unicodedata.normalize("NFKC", character)
        if character in _SEPARATORS or not _SEPARATORS.isdisjoint(normal.replace("\u2044", "")):
            raise _misleading(name, f"{character!a} in a name looks like a separator")
        if not (character.isprintable() or _belongs(name, place)):
            raise _misleading(name, f"{character!a} in a name is not printable")
    seen = "".join(each for each in _UNSEEN.sub("", name) if _category(each)[0] not in "MZ")
    if not seen:
        raise _misleading(name, "nothing of it can be seen")
    if seen.translate(_DOTS) in (".", ".."):
        raise _misleading(name, "this is another directory, or looks like one")


def _belongs(name: str, place: int) -> bool:
    """Whether this is a joiner of letters or emoji, or a space inside the name, of any width."""
    if not 0 < place < len(name) - 1:
        return False
    if name[place] not in (_NON_JOINER, _JOINER):
        return _category(name[place]) == "Zs"
    # after the first of them, an emoji may say that it is one
    around = (name[:place].rstrip(_VARIATION)[-1:], name[place + 1])
    return all(map(_is_letter, around)) or (
        name[place] == _JOINER and all(map(_is_picture, around))
    )


def _is_letter(character: str) -> bool:
    return bool(character) and _category(character)[0] in "LM"


def _is_picture(character: str) -> bool:
    return bool(character) and (_category(character) == "So" or character in _EMOJI_PARTS)


def _category(character: str) -> str:
    return unicodedata.category(character)


def _misleading(name: str, why: str) -> ArtifactError:
    return ArtifactError(f"the model has a file {name!a}, and {why}; rename it")
