"""Each citation of a specification names a section that docs/spec has."""

import re
from pathlib import Path

from tests.test_docs import FOLDERS, ROOT

FILES = [
    path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != Path(__file__).resolve()
]
SECTION = r"\d+(?:\.\d+)*"
CITATION = re.compile(rf"docs/spec/(\w+)\.md, ({SECTION}(?:(?:, | and ){SECTION})*)")
# Styles in which nobody finds the page.
VAGUE = re.compile(
    r"\bspec (?:imagewam|\d)|\bporting spec|sections? \d[\d., and]* of the spec", re.I
)


def sections_of(page: Path) -> set[str]:
    """The numbers of the page's headings, such as "1" and "1.8"."""
    numbers = re.findall(rf"^#+ ({SECTION})\.? ", page.read_text(), re.MULTILINE)
    assert len(numbers) == len(set(numbers)), f"{page} has a section number twice"
    return set(numbers)


def prose(source: str) -> str:
    """A source text in one line, comments that go on over several lines without their signs."""
    return re.sub(r"\s*\n[\s#]*", " ", source)


SECTIONS = {page.stem: sections_of(page) for page in (ROOT / "docs" / "spec").glob("*.md")}


def test_every_cited_section_exists():
    cited = 0
    for path in FILES:
        text = prose(path.read_text())
        citations = CITATION.findall(text)
        assert len(citations) == text.count("docs/spec/"), f"{path}: a citation without a section"
        for page, numbers in citations:
            unknown = set(re.findall(SECTION, numbers)) - SECTIONS.get(page, set())
            assert not unknown, f"{path}: docs/spec/{page}.md has no section {sorted(unknown)}"
        cited += len(citations)
    assert cited > 40


def test_specifications_are_cited_by_their_path():
    vague = {path: found for path in FILES if (found := VAGUE.search(prose(path.read_text())))}
    assert not vague
