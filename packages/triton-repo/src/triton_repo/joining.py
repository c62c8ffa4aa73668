"""Whether Triton joins the requests of several callers, and why.

Joining is for models that answer each row by itself. A generated config.pbtxt turns it on only
where that is known. It says why in a parameter: `true: …`, `false: …`, or `asked: …` where the
option `join_requests` asked for it. The Python backend's `model.py` reads the same parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from triton_repo.config import ModelConfig
    from triton_repo.record import FileDigest

__all__ = ["JOIN_PARAMETER", "Joining", "joining_of"]

#: A parameter of config.pbtxt, see above.
JOIN_PARAMETER = "mlflow_join_requests"
_ASKED = "asked"
_WORDS = {"true": True, "false": False, _ASKED: True}
#: How a config.pbtxt begins that this project generates.
_GENERATED = "# Generated from "
_PYTHON = "python"
_MODEL_FILE = "model.py"
#: sha256 of each `model.py` of `python_function` that joined requests without JOIN_PARAMETER.
_JOINED_ALWAYS = frozenset(
    {
        "887f967758f0a50fb981425580051271af9406f15c25ed09a62065486f838e2b",
        "d7e8388ffe61ac94dd7a7f3ae38514f0ed0defdebadbb963d002d30e9b79073c",
        "1dc6fce3b917d3e2f42a84c943cd967c8bb304a5173676b6b2404265f0826175",
        "00f70b94aa3ab77c25d4e08ed12f3febb1344b48dcc58e8422503f15335e3871",
        "9a8415c3642bd644f602a77f29ca725c79b4528c205c7a23d19179ccb867a6e4",
        "15d05a529d9924d2290aacf6f93ccc79a064bbb45ce36c08ac6e4a391910ea01",
        "75541e016cf40b37d05f30ee684b4486e873969797e71925ca1975c13840a2b3",
        "b95b01c3560224b8caa2811677289ca0389fd877e3e8999013c6052527eebdcf",
        "39c64ccc19eb27222763c13d4e195e836c9ff66cb409e9e980c6aa82af350d9c",
    }
)


@dataclass(frozen=True)
class Joining:
    """Whether requests of several callers are joined.

    Attributes:
        is_joined: whether they are.
        why: the reason, for people; a clause that follows a colon.
        is_older: whether an older release decided, which did not look at what the model is.
    """

    is_joined: bool
    why: str
    is_older: bool = False

    @property
    def text(self) -> str:
        """The value of JOIN_PARAMETER that says so."""
        return f"{str(self.is_joined).lower()}: {self.why}"

    def described(self) -> dict[str, object]:
        """The same for `get`, `list` and `plan`."""
        return {"joined": self.is_joined, "why": self.why}


#: What an older release decided, or its `model.py` does.
_OLDER = Joining(
    is_joined=True,
    why="an older release decided, without a look at what the model is; update it with "
    "--model-uri to decide anew, or with -C join_requests=true or false",
    is_older=True,
)


def asked(*, is_joined: bool) -> str:
    """The value of JOIN_PARAMETER where the option `join_requests` decides."""
    if is_joined:
        return f"{_ASKED}: -C join_requests=true asks for it"
    return "false: -C join_requests=false asks for it"


def decision(config: ModelConfig) -> bool:
    """What JOIN_PARAMETER says; False where the parameter is missing."""
    return _WORDS.get(_word(config.parameters.get(JOIN_PARAMETER, "")), False)


def refuses(value: str) -> bool:
    """Return whether a value of JOIN_PARAMETER says that requests are not joined."""
    return _WORDS.get(_word(value)) is False


def _word(value: str) -> str:
    return value.partition(":")[0]


def joining_of(
    config: ModelConfig, flavor: str, files: Mapping[str, FileDigest] | None = None
) -> Joining:
    """Whether the requests to a model are joined under a config.pbtxt.

    Args:
        config: as it is, or is going to be, in the repository.
        flavor: of the deployment.
        files: of the version that serves, as its record has them; None where they are new.
    """
    is_ours = config.backend == _PYTHON and flavor == "python_function"
    word, _, why = config.parameters.get(JOIN_PARAMETER, "").partition(": ")
    if not (config.inputs or word):
        return Joining(
            is_joined=True,
            why="config.pbtxt names no inputs; Triton completes it, and may join them",
        )
    if not config.is_dynamic and _WORDS.get(word, True):
        return Joining(is_joined=False, why="config.pbtxt has no dynamic_batching")
    placed = (files or {}).get(_MODEL_FILE)
    if is_ours and config.is_dynamic and placed is not None and placed.sha256 in _JOINED_ALWAYS:
        return _OLDER
    if word in _WORDS:
        if config.is_dynamic and not _WORDS[word] and not is_ours:
            return Joining(is_joined=True, why="an option or an edit set dynamic_batching")
        return Joining(is_joined=_WORDS[word], why=why)
    return _undecided(config, is_ours=is_ours)


def _undecided(config: ModelConfig, *, is_ours: bool) -> Joining:
    """The same for a config.pbtxt with dynamic_batching that does not say why."""
    if config.text.startswith(_GENERATED):
        return _OLDER
    own = "the model's own config.pbtxt has dynamic_batching"
    if is_ours:
        own += ", and python_function is asked for each request until -C join_requests=true"
    return Joining(is_joined=not is_ours, why=own)
