"""What the tests of all pipelines share: the module under test, imported as a script would, and its quick run."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

PIPELINES = Path(__file__).parents[2] / "pipelines"


@pytest.fixture(scope="module")
def pipeline(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The pipeline that a file `test_NAME.py` is about; what it imports from its folder is forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PIPELINES))
        yield importlib.import_module(request.module.__name__.rpartition(".")[2].removeprefix("test_"))
        for path in PIPELINES.glob("*.py"):
            sys.modules.pop(path.stem, None)


@pytest.fixture(scope="module")
def out(pipeline: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that a quick run has filled."""
    folder = tmp_path_factory.mktemp("quick")
    assert pipeline.main(["--out", str(folder), "--quick", "--threads", "1"]) == 0
    return folder


@pytest.fixture(scope="module")
def records(out: Path) -> list[dict]:
    """What the quick run has kept of each method and seed."""
    return [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]
