"""Build the documentation site: `python docs/site_build.py [DIR]`, with DIR/site as the result.

Pages are the files beside this one, and what is generated from the installed skipgym: a page for each registered task
from its docstring, the names, the commands' options, the reference, and the tutorial from its script. Needs
`pip install "skipgym[docs]"`.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import site_pages
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
COPIED = ("RESULTS.md", "CONTRIBUTING.md", "examples")
"""Of the repository, what pages link to."""


def stage(out: Path) -> list[Path]:
    """Lay out all pages in OUT/pages and the configuration beside them.

    Args:
        out: Directory; its `pages` are made anew.

    Returns:
        The generated pages.
    """
    pages = out / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(HERE, pages, ignore=shutil.ignore_patterns("*.py", "*.yml", "__pycache__"))
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, pages / name)
    for page in pages.glob("*.md"):  # what lies beside docs/ in the repository lies beside the pages here
        text = page.read_text().replace("](../examples/tutorial.py)", "](tutorial.md)")
        page.write_text(re.sub(r"\]\(\.\./", "](", text))
    tasks, reference = site_pages.task_pages(), site_pages.reference_pages()
    generated = {**tasks, **reference, "tutorial.md": site_pages.tutorial(ROOT / "examples" / "tutorial.py")}
    for name, text in generated.items():
        (pages / name).parent.mkdir(parents=True, exist_ok=True)
        (pages / name).write_text(text)
    (out / "mkdocs.yml").write_text(yaml.safe_dump(configuration([*tasks], [*reference]), sort_keys=False))
    return [pages / name for name in generated]


def configuration(tasks: list[str], reference: list[str]) -> dict[str, Any]:
    """Return the site's configuration with the generated pages, and with where skipgym is installed."""
    config = yaml.safe_load((HERE / "mkdocs.yml").read_text())
    for entry, name, pages in (
        (e, n, p) for e in config["nav"] for n, p in (("Tasks", tasks), ("Reference", reference))
    ):
        if isinstance(entry, dict) and name in entry:
            entry[name] = pages
    (plugin,) = (p["mkdocstrings"] for p in config["plugins"] if "mkdocstrings" in p)
    plugin["handlers"]["python"]["paths"] = [str(site_pages.INSTALLED)]
    return config


def build(out: Path) -> None:
    """Build OUT/site.

    Raises:
        subprocess.CalledProcessError: If a link leads nowhere or a name of the reference cannot be found.
    """
    stage(out)
    words = ["build", "--strict", "--clean", "--config-file", str(out / "mkdocs.yml")]
    subprocess.run([sys.executable, "-m", "zensical", *words], check=True)
    print(out / "site" / "index.html")


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build").resolve())
