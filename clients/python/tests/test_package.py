"""The package as it would be published."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import wirepost

ROOT = Path(__file__).parents[1]


def test_the_wheel_has_types_and_licence_and_works_without_extras(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob(f"wirepost-{wirepost.__version__}-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert "wirepost/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in names)
    assert not [name for name in names if name.startswith("tests")]
    # The client side must not need what the extras bring.
    program = """
import sys
for name in ("aio_pika", "starlette", "pytest"):
    sys.modules[name] = None
import wirepost
print(wirepost.__file__)
"""
    run = [sys.executable, "-c", program]
    found = subprocess.run(
        run, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path / "installed")}, timeout=60
    )
    assert found.stdout.startswith(str(tmp_path))


def test_the_pinned_requirements_are_published_packages_and_complete() -> None:
    """A folder of the machine that made the file would be installable nowhere else."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    pins = {line.partition("==")[0].lower() for line in lines if not line.startswith("#")}
    assert all(re.fullmatch(r"#.*|[A-Za-z0-9_.-]+==[0-9][^ ]*", line) for line in lines), lines
    wanted = (ROOT / "requirements.in").read_text("utf-8").splitlines()
    assert {line for line in wanted if not line.startswith("#")} <= pins


def test_the_changelog_has_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## {re.escape(wirepost.__version__)}\b|^## Unreleased", text, re.MULTILINE)
