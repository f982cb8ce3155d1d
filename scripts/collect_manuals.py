"""Lay out the manuals that the packaged reader's questions are about: one folder of pages each.

dpkg -x PACKAGE.deb unpacked    # the Debian packages of README.md, one after another
python scripts/collect_manuals.py unpacked documents
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

_MIN_BYTES = 1500  # shorter pages lead to others
_HTML = "usr/share/doc/{}/html"
_SQLITE_LISTS = (
    "releaselog|syntax|session/|changes|toc|keyword|hlr|hp1|requirement|sitemap|doclist|news|matrix"
)
_GUIDES = "(swriter|scalc|shared|simpress|sdraw)/guide/|sdatabase/"
# Set, root in the packages, pattern of the pages, pattern of paths to leave out.
MANUALS = (
    ("apache", "usr/share/doc/apache2-doc/manual/en", "*.html", ""),
    *(
        ("apache", "usr/share/doc/apache2-doc/manual/en", f"{part}/*.html", "")
        for part in ("howto", "rewrite", "ssl", "vhosts", "faq", "programs")
    ),
    (
        "borg",
        _HTML.format("borgbackup"),
        "**/*.html",
        "genindex|search|changes|internals|authors",
    ),
    ("django", _HTML.format("python-django-doc"), "**/*.html", "^(?!topics|faq|howto|intro)"),
    ("sqlite", "usr/share/doc/sqlite3", "**/*.html", f"c3ref/|{_SQLITE_LISTS}"),
    *(
        (f"libreoffice{name}", f"usr/share/libreoffice/help/{code}/text", "**/*.html", pattern)
        for name, code, pattern in (
            (
                "",
                "en-US",
                f"^(?!{_GUIDES}|(shared|scalc|swriter|simpress)/01/|shared/(optionen|autopi)/)",
            ),
            *((f"-{code}", code, f"^(?!{_GUIDES})") for code in ("de", "fr", "es")),
        )
    ),
    *(
        ("rust", "usr/share/doc/rust-doc/html", f"{part}/**/*.html", "print")
        for part in ("book", "edition-guide", "rustc", "rustdoc")
    ),
    ("tomcat", "usr/share/tomcat10-docs/docs", "**/*.html", "api/|Api|changelog"),
    ("nodejs", "usr/share/doc/nodejs/api", "*.html", "^(all|index|toc)"),
    ("zsh", "usr/share/doc/zsh-common/html", "*.html", ""),
)


def main(unpacked: Path, target: Path) -> None:
    """Copy the pages of each manual found in the unpacked packages, and say how many."""
    counts: dict[str, int] = {}
    for name, root, pattern, left_out in MANUALS:
        (target / name).mkdir(parents=True, exist_ok=True)
        counts.setdefault(name, 0)
        for page in sorted((unpacked / root).glob(pattern)):
            path = page.relative_to(unpacked / root).as_posix()
            if page.stat().st_size < _MIN_BYTES or (left_out and re.search(left_out, path)):
                continue
            path = page.name if name == "sqlite" else path.replace("/", "_")
            shutil.copy(page, target / name / path)
            counts[name] += 1
    for name, count in counts.items():
        print(f"{name}: {count} pages" if count else f"{name}: not unpacked")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
