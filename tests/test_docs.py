"""The documents say what is so: their code runs, their links lead somewhere, and what they name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import asyncsave

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGE = Path(asyncsave.__file__).parent


def read(name: str) -> str:
    """Return a document's text."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[int, str]]:
    """Return the Python blocks of a document, each with the line that it begins at."""
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md", "docs/runs.md"])
def test_python_blocks_run(name, tmp_path, monkeypatch):
    """Every Python block runs, in the order of the document, on what the ones before have made."""
    monkeypatch.chdir(tmp_path)
    found = blocks(read(name))
    namespace = {"__name__": "__main__"}
    for line, source in found:
        # The padding makes a traceback point at the document's own line.
        exec(compile("\n" * line + source, str(ROOT / name), "exec"), namespace)  # noqa: S102 - our own text
    assert found
    asyncsave.shutdown()


def test_the_readmes_program_has_twelve_lines():
    """What a newcomer is shown first is short."""
    (_, source), *_ = blocks(read("README.md"))
    assert len([line for line in source.splitlines() if line.strip()]) == 12


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(document):
    """Every relative link is a file, and its anchor a heading there."""
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.is_file(), f"{document.name}: {link} leads nowhere"
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{document.name}: no {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document):
    """Every Python file in backticks is one of the package, the tests or the benchmarks."""
    for name in re.findall(r"`([\w/]+\.py)`", document.read_text(encoding="utf-8")):
        places = [PACKAGE / name, ROOT / name, ROOT / "benchmarks" / name]
        assert any(place.is_file() for place in places), f"{document.name} names {name}, which does not exist"


def test_every_module_is_in_the_design():
    """The table of rooms is whole."""
    named = set(re.findall(r"`([\w/]+\.py)`", read("docs/design.md")))
    modules = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    assert not modules - named, f"docs/design.md does not name {sorted(modules - named)}"


def test_every_public_name_is_told():
    """Whatever can be imported from the package is in the quickstart or the README."""
    told = set(re.findall(r"\w+", read("README.md") + read("docs/quickstart.md")))
    assert not set(asyncsave.__all__) - told
