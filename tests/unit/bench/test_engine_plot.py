from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench.engine_plot import PlotError, main, plot

SECONDS = {
    "text": 0.5,
    "conditioning": 0.1,
    "denoising": 27.5,
    "decoding": 1.0,
    "rest": 0.2,
    "total": 29.3,
}


def result(warm: dict[str, float] | None) -> dict[str, Any]:
    return {
        "setup": {"cap_gib": 24.0},
        "machine": {"card": "A card", "versions": {"torch": "2.13.0"}},
        "rows": [{"engine": "ours", "frames": 49, "steps": 30, "warm": warm}],
        "note": "Random weights.",
    }


def test_results_of_several_runs_become_one_png(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    file.write_text(json.dumps(result(SECONDS)))
    assert main([str(tmp_path / "two.png"), str(file), str(file)]) == 0
    picture = (tmp_path / "two.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


@pytest.mark.parametrize("arguments", [[], ["out.png"], ["--help"]])
def test_wrong_arguments_show_the_right_ones(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "OUT.png FILE.json" in capsys.readouterr().err


def test_without_a_successful_request_there_is_no_plot(tmp_path: Path) -> None:
    with pytest.raises(PlotError, match="No request succeeded"):
        plot([result(None)], tmp_path / "out.png")
