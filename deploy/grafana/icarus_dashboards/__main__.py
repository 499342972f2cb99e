"""Writes every dashboard into a folder: `python -m icarus_dashboards FOLDER`."""

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from icarus_dashboards import cache_reuse, serving, transfers_and_workers


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for module in (cache_reuse, serving, transfers_and_workers):
        dashboard = module.build()
        text = json.dumps(dashboard, cls=JSONEncoder, indent=2, sort_keys=True)
        (folder / f"{dashboard.uid}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
