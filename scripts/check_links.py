"""Look at every link of the built site: pages and anchors within it must be there.

Links that lead elsewhere are listed, not followed: the site is built and checked without a network.

    python scripts/check_links.py build/site
"""

from __future__ import annotations

import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit


class Page(HTMLParser):
    """The anchors of a page, and what it links to and loads."""

    def __init__(self, text: str) -> None:
        """Read a page."""
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note ids, names, links and files."""
        found = {name: value for name, value in attrs if value is not None}
        self.anchors.update(found[key] for key in ("id", "name") if key in found)
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in {"img", "script"} and "src" in found:
            self.loads.append(found["src"])
        if tag == "link" and "href" in found and "canonical" not in found.get("rel", ""):
            self.loads.append(found["href"])


def main() -> None:
    """Check the site that the command line names."""
    site = Path(sys.argv[1]).resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    broken: list[str] = []
    external: Counter[str] = Counter()
    for path, page in pages.items():
        broken += _look_at_files(site, path, page)
        broken += _follow(site, path, pages, external)
    for link, count in sorted(external.items()):
        print(f"external {count:4} {link}")
    for line in broken:
        print(line, file=sys.stderr)
    print(f"{len(pages)} pages, {len(external)} external links, {len(broken)} broken")
    sys.exit(1 if broken else 0)


def _look_at_files(site: Path, path: Path, page: Page) -> list[str]:
    """Return what a page loads and does not find, or loads from elsewhere."""
    shown = path.relative_to(site)
    elsewhere = [f"{shown}: loads {link} from elsewhere" for link in page.loads if _leaves(link)]
    here = [link for link in page.loads if not _leaves(link)]
    lost = [
        f"{shown}: {link} is not there" for link in here if not _find(site, path, link).is_file()
    ]
    return elsewhere + lost


def _follow(site: Path, path: Path, pages: dict[Path, Page], external: Counter[str]) -> list[str]:
    """Return the links of a page that lead nowhere; count those that leave the site."""
    broken, shown = [], path.relative_to(site)
    for link in pages[path].links:
        if _leaves(link):
            external[link] += 1
            continue
        target, anchor = _find(site, path, link), unquote(urldefrag(link).fragment)
        if not target.is_file():
            broken.append(f"{shown}: {link} leads nowhere")
        elif anchor and target in pages and anchor not in pages[target].anchors:
            broken.append(f"{shown}: {link} has no such anchor")
    return broken


def _leaves(link: str) -> bool:
    parts = urlsplit(link)
    return bool(parts.scheme or parts.netloc)


def _find(site: Path, page: Path, link: str) -> Path:
    """Return the file that a link of a page means."""
    path = unquote(urlsplit(link).path)
    if not path:
        return page
    found = site / path.lstrip("/") if path.startswith("/") else (page.parent / path).resolve()
    return found / "index.html" if found.is_dir() else found


if __name__ == "__main__":
    main()
