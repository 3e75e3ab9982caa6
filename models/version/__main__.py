"""Prints the variables of a build of the images: `export $(python3 -m models.version)`."""

from __future__ import annotations

import sys

from models.version import this_build

if __name__ == "__main__":
    sys.stdout.writelines(f"{name}={value}\n" for name, value in this_build().variables.items())
