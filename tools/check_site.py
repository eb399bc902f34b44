"""Check the built site without a network: every internal link leads somewhere, and no page loads anything from outside.

python tools/check_site.py site
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"script": "src", "img": "src", "link": "href", "source": "src", "iframe": "src"}
INNOCENT = {"canonical", "search", "index", "next", "prev", "author"}  # kinds of <link> that load nothing


@dataclass
class Page(HTMLParser):
    """What a page names: places in itself, links, and what it loads."""

    path: Path
    ids: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    loads: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called for each element."""
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        if tag in LOADS and LOADS[tag] in values and values.get("rel") not in INNOCENT:
            self.loads.add(values[LOADS[tag]])


def faults(site: Path) -> list[str]:
    """What is wrong, one line each."""
    paths = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]  # those are templates
    pages = {path.resolve(): Page(path) for path in paths}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        outside = [url for url in page.loads if urlsplit(url).scheme in ("http", "https") or url.startswith("//")]
        found += [f"{name} loads {url}" for url in sorted(outside)]
        for url in sorted(page.links | page.loads):
            parts = urlsplit(url)
            if parts.scheme or parts.netloc or not (parts.path or parts.fragment):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{name} names {url}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                found.append(f"{name} names {url}, and no such place is on that page")
    if len(pages) < 20 or not (site / "searchindex.js").exists():
        found.append(f"{site} is no whole site: {len(pages)} pages")
    return found


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]))
    print("\n".join(wrong) or f"{sys.argv[1]}: every internal link leads somewhere, nothing is loaded from outside.")
    sys.exit(1 if wrong else 0)
