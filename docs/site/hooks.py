"""Hook of MkDocs: the pages below reference/ are written from the code at each build, so none can go stale."""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import references


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of docs/."""
    for name, text in references.pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files
