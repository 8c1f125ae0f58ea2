"""Write the tree of the package into README.md: one line a file, from the first sentence of its docstring.

    python tools/tree.py          rewrites the block between the marks
    python tools/tree.py --check  exits with 1 if the block is not up to date
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- tree -->", "<!-- end of tree -->"
WIDTH = 118


def first_sentence(path: Path) -> str:
    """Of a module's docstring, in one line."""
    doc = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    line = " ".join(doc.split())
    cut = line.find(". ")
    return (line if cut < 0 else line[:cut]).rstrip(".:")


def tree() -> str:
    """The block."""
    source, lines = ROOT / "src" / "luthier", ["src/luthier/"]
    folders = sorted({path.parent for path in source.rglob("*.py")}, key=lambda path: (len(path.relative_to(source).parts) > 0, str(path)))
    for folder in folders:
        depth = len(folder.relative_to(source).parts)
        if depth:
            lines.append(_line("  " * depth + folder.name + "/", first_sentence(folder / "__init__.py")))
        for path in sorted(folder.glob("*.py")):
            if path.name not in ("__init__.py", "__main__.py"):
                lines.append(_line("  " * (depth + 1) + path.name, first_sentence(path)))
    return "```\n" + "\n".join(lines) + "\n```"


def _line(name: str, says: str) -> str:
    text = f"{name:<24}{says}"
    return text if len(text) <= WIDTH else text[: WIDTH - 3].rsplit(" ", 1)[0] + " ..."


def main() -> int:
    """Write or check."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    wanted = f"{before}{BEGIN}\n{tree()}\n{END}{after}"
    if "--check" in sys.argv:
        return int(wanted != text)
    readme.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
