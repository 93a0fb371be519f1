"""The site is built strictly: every link leads somewhere, and every name of the reference is found."""

import re

import pytest

from skipgym.envs import task_names
from skipgym.ids import env_id


@pytest.fixture(scope="module")
def built(site, tmp_path_factory):
    pytest.importorskip("zensical", reason="the site needs pip install 'skipgym[docs]'")
    out = tmp_path_factory.mktemp("site")
    site.build(out)
    return out / "site"


def test_every_task_has_its_page(built):
    for name in task_names():
        assert env_id(name) in (built / "tasks" / f"{name}.html").read_text()


def test_new_task_gets_its_page_without_an_edit(site, install, tmp_path):
    source = "from skipgym.envs import LayerSkip\nclass Other(LayerSkip):\n    '''Skip otherwise.'''\n"
    install("otherwise", source, tasks="skip-otherwise = otherwise:Other")
    staged = {page.name: page.read_text() for page in site.stage(tmp_path / "out")}
    assert "Skip otherwise." in staged["skip-otherwise.md"]
    assert "skip-otherwise.md" in staged["index.md"]
    assert "tasks/skip-otherwise.md" in (tmp_path / "out" / "mkdocs.yml").read_text()


def test_reference_describes_what_users_import(built):
    for page, name in (("envs", "task.Task"), ("agents", "controller.Controller"), ("testing", "check.check_task")):
        assert f'id="skipgym.{page}.{name}"' in (built / "reference" / f"{page}.html").read_text()


def test_pages_fetch_nothing_from_elsewhere(built):
    for page in built.rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="?(https?:[^"> ]+)', page.read_text()
        )
        assert fetched == [], page
