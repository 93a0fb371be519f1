"""Find the code blocks of a page, and run them as a reader would: from the top, in one session."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from skipgym.scripts.cli import main

MARKER = re.compile(r"<!-- (?:(output)|not run: (.+)) -->")
LANGUAGES = ("python", "sh", "toml", "text")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block.

    Attributes:
        page: File that it stands in.
        line: Number of its first line of code.
        language: What the fence says.
        code: Its lines.
        why_not: Why it is not run, as the page's `<!-- not run: … -->` says; empty where it is run.
        is_output: Whether it is what the block before it prints, by `<!-- output -->`.
    """

    page: Path
    line: int
    language: str
    code: str
    why_not: str = ""
    is_output: bool = False

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return all fenced blocks of a page; a marker stands on the line before its fence."""
    found, lines = [], page.read_text().splitlines()
    numbers = iter(range(len(lines)))
    for start in numbers:
        if not (fence := re.match(r"\s*(```+|~~~+)(.*)", lines[start])):
            continue
        end = next(n for n in numbers if lines[n].strip() == fence[1])
        marker = MARKER.fullmatch(lines[start - 1].strip()) if start else None
        found.append(
            Block(
                page=page,
                line=start + 2,
                language=fence[2].strip(),
                code="\n".join(lines[start + 1 : end]),
                why_not=marker[2] or "" if marker else "",
                is_output=bool(marker and marker[1]),
            )
        )
    return found


def loose_code(page: Path) -> list[int]:
    """Return the numbers of lines that Markdown shows as code though no fence holds them, and of indented fences."""
    found, inside, before = [], False, ""
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if re.match(r"\s*(```|~~~)", line):
            inside = not inside
            found += [number] * line.startswith(" ")
        elif not inside and not before and re.match(r"    \S", line):
            found.append(number)
        before = line.strip()
    return found


@dataclass
class Session:
    """What a reader has typed so far.

    Attributes:
        namespace: The page's names, a module of its own so that pickle finds its classes.
        printed: By the last block that ran.
    """

    namespace: ModuleType
    printed: str = field(default="")

    def run(self, block: Block) -> None:
        """Run a block, or hold it against what was printed."""
        if block.is_output:
            assert matches(block.code, self.printed), f"{block} shows\n{block.code}\nbut was\n{self.printed}"
            return
        if block.language == "toml":
            tomllib.loads(block.code)
            return
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            {"python": self._python, "sh": self._shell}[block.language](block)
        self.printed = text.getvalue()

    def _python(self, block: Block) -> None:
        code = compile("\n" * (block.line - 1) + block.code, str(block.page), "exec")
        exec(code, vars(self.namespace))

    def _shell(self, block: Block) -> None:
        for words in commands(block.code):
            if words[0] == "skipgym":
                assert _skipgym(words[1:]) == 0, f"{block}: {shlex.join(words)} failed"
            else:
                assert words[0] == "python", f"{block}: expected skipgym or python, got {words[0]}. Mark it 'not run'."
                subprocess.run([sys.executable, *words[1:]], check=True, stdout=subprocess.DEVNULL)


def commands(code: str) -> Iterator[list[str]]:
    """Yield the words of each command of a block; `#` begins a comment, a backslash joins lines."""
    for line in code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def matches(shown: str, printed: str) -> bool:
    """Return whether a page shows what was printed; `…` stands for anything, and spaces at line ends do not count."""
    pattern = ".*".join(re.escape(_trimmed(part)) for part in shown.split("…"))
    return re.fullmatch(pattern, _trimmed(printed), re.S) is not None


def _trimmed(text: str) -> str:
    return re.sub(r"[ \t]+$", "", text, flags=re.M).strip("\n")


def _skipgym(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as left:  # after --help
        return int(left.code or 0)
