"""Print what pyproject.toml requires with some extras, a line each, for `pip install -r`.

    python3 docker/image/requirements.py mcp otel

The images install these before the wheel: a change of the sources leaves their layer as it was.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]


def of_extras(extras: list[str]) -> Iterator[str]:
    for extra in extras:
        for line in PROJECT["optional-dependencies"][extra]:
            if own := re.fullmatch(rf"{PROJECT['name']}\[(.+)\]", line):
                yield from of_extras(own[1].split(","))
            else:
                yield line


sys.stdout.writelines(
    f"{line}\n" for line in chain(PROJECT["dependencies"], of_extras(sys.argv[1:]))
)
