"""The prompts that corpora are written with: files beside this one, with variables in braces.

A folder of the user's may hold other versions of some of them, under the same names.
"""

import functools
import os
import pathlib
import re

from msm_jax.errors import UserError
from msm_jax.storage import files

_FOLDER = pathlib.Path(__file__).with_name("prompts")
_TABLE = re.compile(r"^- (\w+): (.+)$", re.MULTILINE)
_VARIABLE = re.compile(r"\{([a-z_]+)\}")


class Prompts:
    """The prompts of this package, or those of `folder` where it has them.

    Raises: UserError if the folder is missing, holds a file that is no prompt, or a prompt has an unknown variable or
    leaves one out.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        self._texts = {path.stem: path.read_text(encoding="utf-8").strip() for path in _FOLDER.glob("*.md")}
        if folder and not pathlib.Path(folder).is_dir():
            raise UserError(f"{folder}: no such folder of prompts")
        for path in sorted(pathlib.Path(folder).glob("*.md")) if folder else ():
            if path.stem not in self._texts:
                raise UserError(f"{path}: is no prompt; there are {', '.join(sorted(self._texts))}")
            self._texts[path.stem] = _replaced(self._texts[path.stem], path)

    def fill(self, name: str, /, **variables: object) -> str:
        """The prompt `name` with its variables filled in. Braces in their values stay as they are."""
        text = self._texts[name]
        # A line that is an empty variable and nothing else goes.
        for variable, value in variables.items():
            if value == "":
                text = text.replace(f"\n{{{variable}}}\n", "\n")
        text = _VARIABLE.sub(lambda match: str(variables[match[1]]), text)
        return re.sub(r"\n{3,}", "\n\n", text).strip()

    def table(self, name: str, /, **variables: object) -> dict[str, str]:
        """The lines "- key: text" of the prompt `name`, with their variables filled in."""
        return dict(_TABLE.findall(self.fill(name, **variables)))

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Name -> digest of its text."""
        return {name: files.fingerprint(text) for name, text in sorted(self._texts.items())}


def _replaced(ours: str, path: pathlib.Path) -> str:
    """The prompt in a file of the user's, which stands in for one of ours."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 ({error})") from None
    known, used = (set(_VARIABLE.findall(one)) for one in (ours, text))
    if missing := known - used:
        raise UserError(f"{path}: leaves out {{{min(missing)}}}, which the prompt that it replaces has; put it in")
    if _TABLE.search(ours) and not _TABLE.search(text):
        raise UserError(f"{path}: has no line '- key: text', as the prompt that it replaces")
    if unknown := used - known:
        raise UserError(f"{path}: unknown variable {{{min(unknown)}}}; the prompt that it replaces has none")
    return text
