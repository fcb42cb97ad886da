"""``trimtab label``: the label pages, with completions sampled while people label."""

from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError
from trimtab.label import serve
from trimtab.label.label_config import LabelConfig


class LabelCommand(LabelConfig):
    """Configuration of ``trimtab label``."""

    data: str = ""
    """Completions to compare (``prompt`` with 2 to 9 ``completions``, or ``chosen`` and
    ``rejected``); with ``model``, prompts to complete."""
    export: bool = False
    """Write the labels of ``out`` as files and stop."""


def main(config: LabelCommand) -> None:
    """Serve the pages until stopped, or export.

    Raises:
        ConfigError: there is nothing to label.
    """
    if config.export:
        serve.export_folder(Path(config.out))
    elif not config.data:
        raise ConfigError("give the file to label: trimtab label DATA")
    else:
        values = config.model_dump(exclude={"export"})
        serve.main(LabelConfig.model_validate(values), _sampled)


def _sampled(*arguments: Any) -> Any:
    # Imported in the thread that samples: the first page need not wait for it.
    from trimtab.datagen.sample import sampled

    return sampled(*arguments)
