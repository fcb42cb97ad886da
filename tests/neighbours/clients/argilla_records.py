"""Records read and written by Argilla's SDK, as ``records.from_json`` and ``to_json`` do.

Arguments: JSON file of records, output file. Prints how many.
"""

import json
import sys
from pathlib import Path


def main(source: str, to: str) -> None:
    from argilla.records._io import JsonIO

    records = JsonIO._records_from_json(source)
    JsonIO.to_json(records, Path(to))
    print(json.dumps(len(records)))


if __name__ == "__main__":
    main(*sys.argv[1:])
