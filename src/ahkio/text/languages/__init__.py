"""One file for each language: its `RULES`."""

import importlib
import pkgutil

from ahkio.core.errors import UserError
from ahkio.text.rules import Rules


def rules_of(language: str) -> Rules:
    """The RULES of text/languages/`language`.py. UserError naming those there are."""
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    if language not in known:
        raise UserError(
            f"There are no rules for the language {language!r}; there are: {', '.join(known)}; or give your own Rules."
        )
    rules: Rules = importlib.import_module(f"{__name__}.{language}").RULES
    return rules
