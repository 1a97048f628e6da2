"""Hook of MkDocs: the pages below reference/ are written from the code at each build, so none can go stale."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import references

VERBS = "reference/verbs.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the page of each verb below the list of verbs: the navigation names no verb."""
    config.nav = with_verbs(config.nav)
    return config


def with_verbs(nav: Any) -> Any:
    """The navigation with a group in the place of the list of verbs: the list, then a page a verb.

    Args:
        nav: As in mkdocs.yml: lists, {title: page} and {title: list}.

    Returns:
        A new one.
    """
    if isinstance(nav, list):
        return [with_verbs(one) for one in nav]
    if not isinstance(nav, dict):
        return nav
    ((title, page),) = nav.items()
    if page != VERBS:
        return {title: with_verbs(page)}
    return {title: [{"All verbs": VERBS}, *({name: f"reference/verbs/{name}.md"} for name in references.commands())]}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of docs/."""
    for name, text in references.pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files
