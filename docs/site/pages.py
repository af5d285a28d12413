"""Pages of the site that lie in the repository's root: its changelog, how to contribute, its licence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]


def on_files(files: Files, *, config: Any) -> Files:
    """MkDocs' hook: adds them, with links that lead into ``docs`` from where they are now."""
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    files.append(File.generated(config, "LICENSE.md", content=f"# Licence\n\n```text\n{licence}\n```\n"))
    return files
