"""The step of the build that writes version and commit into a wheel or a source distribution."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "models/version"


class RecordVersion(BuildHookInterface[BuilderConfig]):
    """An editable installation takes no notice: it asks git when it runs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 (given)
        build = runpy.run_path(str(Path(self.root, PACKAGE, "__init__.py")))["this_build"]()
        self._folder = TemporaryDirectory()
        record = Path(self._folder.name, "record.json")
        record.write_text(json.dumps(build._asdict()) + "\n")
        build_data["force_include"][str(record)] = f"{PACKAGE}/record.json"

    def finalize(self, *_: Any) -> None:  # noqa: ANN401 (it needs none of its arguments)
        self._folder.cleanup()
