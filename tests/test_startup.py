"""The package and its command start without the heavy packages."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "monai", "numpy", "nibabel", "scipy", "SimpleITK", "skimage", "ignite", "PIL")
REPORT = f"print('loaded:', sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
RUN_COMMAND = f"""
import sys
sys.argv = ["medseg", *sys.argv[1:]]
from medseg.cli import main
try:
    main()
finally:
    {REPORT}
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_importing_the_package_loads_nothing_heavy():
    result = run_python(f"import sys, medseg; medseg.__version__; {REPORT}")
    assert "loaded: []" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        *(
            [verb, "--help"]
            for verb in ("predict", "train", "adapt", "evaluate", "stats", "info", "bundle", "scaling", "nnunet-path")
        ),
    ],
    ids=" ".join,
)
def test_help_and_version_load_nothing_heavy(arguments):
    result = run_python(RUN_COMMAND, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert result.stderr.strip() == "loaded: []"


def test_the_version_printed_is_the_package_version():
    import medseg

    assert medseg.__version__ in run_python(RUN_COMMAND, "--version").stdout
