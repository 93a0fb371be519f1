"""Every code block of the README and of the documentation runs as it stands, and shows what it really prints."""

import sys
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import pytest

from skipgym.referee.workers import REGISTRIES

from .blocks import LANGUAGES, Session, blocks, loose_code, matches

ROOT = Path(__file__).parents[2]
WRITTEN = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OWN_TEST = {"tutorial.md": "its script is run by test_tutorial.py"}

pytestmark = pytest.mark.usefixtures("briefly")


@pytest.fixture(scope="module")
def pages(site, tmp_path_factory):
    """All pages by name: those that are written, and those that are generated."""
    generated = site.stage(tmp_path_factory.mktemp("staged"))
    return {page.stem: page for page in [*WRITTEN, *generated] if page.name not in OWN_TEST}


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """An empty directory, and registries that forget what a page has registered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    ids = set(gym.registry)
    for registry in REGISTRIES.values():
        registry.names()  # ours are imported once, and register themselves once
        monkeypatch.setattr(registry, "registered", dict(registry.registered))
    yield
    for name in set(gym.registry) - ids:
        del gym.registry[name]


def names():
    """Return the names of all pages without staging them, so that each can be a test of its own."""
    from skipgym.envs import task_names

    return [*(page.stem for page in WRITTEN), *task_names(), "names", "commands"]


def test_no_page_escapes(pages):
    with_code = {name for name, page in pages.items() if blocks(page)}
    assert with_code <= {*names()}


def test_no_block_escapes(pages):
    for page in pages.values():
        assert loose_code(page) == [], f"{page}: code outside of fences, or an indented fence"
        for block in blocks(page):
            assert block.language in LANGUAGES, f"{block}: expected one of {LANGUAGES}, got {block.language!r}"
            is_text = block.language == "text"
            assert is_text <= (block.is_output or bool(block.why_not)), f"{block}: mark it as output, or as not run"
            assert not block.why_not or len(block.why_not.split()) >= 3, f"{block}: say why it is not run"


@pytest.mark.parametrize("name", names())
def test_page_runs_as_it_stands(name, pages, reader, monkeypatch):
    module = f"page_{name.replace('-', '_')}"
    session = Session(ModuleType(module))
    monkeypatch.setitem(sys.modules, module, session.namespace)
    for block in blocks(pages[name]):
        if not block.why_not:
            session.run(block)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\nb", "a\nb\n", True),
        ("a … c", "a b  c", True),
        ("a", "b", False),
        ("a", "a\nb", False),
        ("1…", "0", False),
    ],
)
def test_output_is_compared(shown, printed, same):
    assert matches(shown, printed) == same


def test_blocks_are_found_with_their_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("x\n```python\na = 1\n```\n\n<!-- not run: needs a download -->\n```sh\nwget\n```\n    stray\n")
    first, second = blocks(page)
    assert (first.line, first.code, first.why_not) == (3, "a = 1", "")
    assert (second.language, second.why_not) == ("sh", "needs a download")
    page.write_text("x\n\n    stray = 1\n\n  ```python\n  ```\n")
    assert loose_code(page) == [3, 5, 6]
