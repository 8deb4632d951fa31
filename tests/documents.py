"""What the README and the documents show, for the tests that hold them to it."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Where a reader puts something of theirs.
_PLACEHOLDER = re.compile(r"[…<>]|\b(?:RUN_FOLDER|FOLDER|NAME|CHECKPOINT|DATE|KEY|VALUE|RUN|DIR|N|X)\b|\[[a-z. ]*=")
_PROGRAMS = ("smet-", "make ", "python ")


@dataclass(frozen=True, slots=True)
class Command:
    """A command line of a document; ``whole`` unless a reader has to fill something in."""

    document: str
    line: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line, comments=True)

    @property
    def whole(self) -> bool:
        return not _PLACEHOLDER.search(self.line)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def shell_lines(text: str) -> list[str]:
    """The command lines of the ``bash`` and ``console`` blocks of a document, continued ones joined, without output."""
    lines = []
    for kind, block in re.findall(r"```(bash|console)\n(.*?)```", text, re.DOTALL):
        joined = re.sub(r"\\\n>?\s*", "", block)
        for line in joined.splitlines():
            if kind == "console" and line.startswith("$ "):
                lines.append(line[2:])
            elif kind == "bash" and line.strip() and not line.startswith("#"):
                lines.append(line)
    return lines


def without_blocks(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def spans(text: str) -> list[str]:
    """What stands between backticks outside of blocks, line ends as spaces."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", without_blocks(text))]


def commands() -> list[Command]:
    """Every command of every document, from blocks and from running text."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        lines = shell_lines(text) + [span for span in spans(text) if span.startswith(_PROGRAMS)]
        found += [Command(name_of(path), part.strip()) for line in lines for part in re.split(r" (?:&&|\|\|) ", line)]
    return found


def anchors(text: str) -> set[str]:
    """The names by which a document's headings are linked to."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
