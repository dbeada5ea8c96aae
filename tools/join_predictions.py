#!/usr/bin/env python
"""Join the results that tools/demo.py has written of single images in one file of COCO's format.

    python tools/join_predictions.py output/predictions

It writes instances.json and panoptic.json beside the folders of these names; label maps and
panoptic maps stay as they are. The results may come from several processes and runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sgr.inference import join_results


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the --output of tools/demo.py")
    folder = parser.parse_args(arguments).folder.expanduser()
    try:
        for file in join_results(folder, progress=True):
            print(file)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
