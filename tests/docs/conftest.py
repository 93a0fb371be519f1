import sys
from importlib import import_module
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def site():
    """The module that lays out the site; it stands beside the pages."""
    docs = str(Path(__file__).parents[2] / "docs")
    pytest.importorskip("yaml", reason="the site needs pip install 'skipgym[docs]'")
    sys.path.insert(0, docs)
    try:
        return import_module("site_build")
    finally:
        sys.path.remove(docs)
