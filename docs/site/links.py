"""A hook of mkdocs: links from a page to files of the repository outside `docs/` become their paths, as text.

The site has no address of a repository to link to, and must be whole without a network.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    folder = posixpath.dirname(page.file.src_uri)

    def inside_or_path(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, found[2]))
        if target.startswith("docs/"):
            return found[0]
        return found[1] if found[1].strip("`") == target else f"{found[1]} (`{target}` in the repository)"

    return LINK.sub(inside_or_path, markdown)
