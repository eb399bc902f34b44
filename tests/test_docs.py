"""The pages as a whole: none is left out of the list, and the words of the glossary are in order."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
MADE = ("api/", "project/")  # by a build of the site


def test_every_page_is_in_a_table_of_the_index() -> None:
    listed = re.findall(r"^\| \[[^\]]+\]\(([\w/.-]+)\) \|", (DOCS / "index.md").read_text(), re.MULTILINE)
    own = [page for page in listed if not page.startswith("../")]
    assert len(set(listed)) == len(listed)
    assert set(own) == {page for page in PAGES - {"index.md"} if not page.startswith(MADE)}


def test_the_glossary_is_sorted_and_says_each_word_once() -> None:
    words = re.findall(r"^\| ([^|]+) \| ", (DOCS / "glossary.md").read_text(), re.MULTILINE)[1:]
    plain = [word.lower() for word in words]
    assert len(plain) > 30
    assert plain == sorted(set(plain))


def test_tests_that_the_known_limits_name_are_there() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (DOCS / "limits.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    for file, name in named:
        assert re.search(
            rf"^ *def {name}\(", (Path(__file__).parent / file).read_text(encoding="utf-8"), re.MULTILINE
        ), name
