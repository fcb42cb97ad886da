"""Labels as a dataset on the Hugging Face hub: ``items.jsonl`` and ``judgements.jsonl``."""

from __future__ import annotations

import re
from pathlib import Path

from trimtab.data import sources
from trimtab.errors import DataError
from trimtab.feedback.records import ITEMS, JUDGEMENTS, Records, parse, to_jsonl

PREFIX = "hub://"
CARD = """---
configs:
- config_name: items
  data_files: items.jsonl
- config_name: judgements
  data_files: judgements.jsonl
tags:
- preference
- trimtab
---
# Preference labels

{items} items and {judgements} judgements. Names of annotators and times are in `judgements.jsonl`.
`trimtab exchange hub://{name} --to labels.jsonl` reads them; so does `datasets`, by configuration.
"""


def _name(address: str) -> str:
    name = address.removeprefix(PREFIX).strip("/")
    if not re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?", name):
        raise DataError(f"{address}: write hub://OWNER/NAME")
    return name


def pull(address: str) -> Records:
    """Items and judgements of a hub dataset that ``push`` wrote.

    Raises:
        DataError: it does not exist, cannot be reached, or has another format.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    name = _name(address)
    records = Records()
    for file in (ITEMS, JUDGEMENTS):
        try:
            path = hf_hub_download(name, file, repo_type="dataset")
        except (HfHubHTTPError, OSError) as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise DataError(f"{address}: {file} cannot be downloaded ({why})") from None
        if Path(path).stat().st_size:
            records.merge(parse(sources.read(path)))
    records.check()
    return records


def push(address: str, records: Records, *, private: bool = True) -> str:
    """Upload both files and a card in one commit; a missing dataset is created.

    Returns:
        The dataset's URL.

    Raises:
        DataError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    name = _name(address)
    card = CARD.format(items=len(records.items), judgements=len(records.judgements), name=name)
    files = {
        ITEMS: to_jsonl(records.items.values()),
        JUDGEMENTS: to_jsonl(records.judgements),
        "README.md": card.encode(),
    }
    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        commit = api.create_commit(
            name,
            [CommitOperationAdd(path, data) for path, data in files.items()],
            commit_message="Preference labels",
            repo_type="dataset",
        )
    except (HfHubHTTPError, OSError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"{address}: cannot be written ({why}); to sign in, run 'hf auth login'"
        ) from None
    return str(commit.repo_url)
