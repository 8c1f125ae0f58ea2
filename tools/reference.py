"""Write docs/reference.md from the command line, the tables and the recipe, so that it can't fall behind.

    python tools/reference.py          writes it
    python tools/reference.py --check  exits with 1 if it is not up to date
"""

from __future__ import annotations

import sys
from pathlib import Path

from typer.main import get_command
from typer.testing import CliRunner

from luthier.cli import app
from luthier.show import show

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
TABLES = ("recipe", "adapters", "methods", "losses", "metrics", "schedules", "records", "sources")
CODES = """\
| exit code | meaning |
|---|---|
| 0 | done |
| 2 | a mistake the user can mend; the sentence says where and how |
| 75 | interrupted; the same command with `--resume` goes on |
| 70 | a defect of Luthier; `--debug` shows the traceback |
"""


def page() -> str:
    """The whole page."""
    parts = ["# Reference", "", "Written by `tools/reference.py` from the code.", "", "## The command line", "", CODES]
    runner = CliRunner()
    environment = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    for verb in sorted(get_command(app).commands):  # type: ignore[attr-defined]
        told = runner.invoke(app, [verb, "--help"], env=environment, prog_name="luthier")
        parts += [f"### luthier {verb}", "", "```text", _tidy(told.output), "```", ""]
    for name in TABLES:
        parts += [f"## {name.capitalize()}", "", "```text", _tidy(show(name)), "```", ""]
    return "\n".join(parts)


def _tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def main() -> int:
    """Write or check."""
    if "--check" in sys.argv:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
