"""The commands in the documents: blocks that are to be typed, what is marked above them, and code within the text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")))
COMMANDS = ("sh", "console")
OTHERS = ("yaml", "text", "json", "lua", "sql", "ini", "python")  # none of them is typed
# What a line in an indented block would begin with if it were to be typed.
TYPED = re.compile(
    r"\$ |(?:castgate|curl|kill -[A-Z]+|fly|docker|systemctl|journalctl|pip|python3?|psql|redis-cli|\./dev) "
)
_FENCE = re.compile(r"^(\s*)```(\w*)$")
_MARKER = re.compile(r"^\s*<!-- not run: (\S.*) -->$")
INLINE_MARKER = re.compile(r"^<!-- inline commands not run: \S.* -->$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Command:
    """One that is typed, and the lines that are shown as its output; none: whatever it says."""

    text: str
    shown: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Block:
    document: str
    line: int
    kind: str
    lines: tuple[str, ...]
    not_run: str | None = None  # why

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"

    def commands(self) -> Iterator[Command]:
        """In order. In a console block those after a ``$``; elsewhere each line, without its comment."""
        if self.kind == "sh":
            yield from (Command(text=line.partition("  #")[0].strip()) for line in self.lines if line.strip())
            return
        typed, shown = "", []
        for line in self.lines:
            if typed.endswith("\\"):
                typed += f"\n{line}"
            elif line.startswith("$ "):
                if typed:
                    yield Command(text=typed, shown=tuple(shown))
                typed, shown = line[2:], []
            else:
                shown.append(line)
        yield Command(text=typed, shown=tuple(shown))


def blocks(document: Path) -> Iterator[Block]:
    """All fenced blocks of a document."""
    lines = document.read_text().splitlines()
    opened: int | None = None
    kind = ""
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if opened is not None:
            if line.strip() == "```":
                indent = len(lines[opened]) - len(lines[opened].lstrip())
                marker = _MARKER.match(lines[opened - 1]) if opened else None
                yield Block(
                    document=str(document.relative_to(ROOT)),
                    line=opened + 1,
                    kind=kind,
                    lines=tuple(one[indent:] for one in lines[opened + 1 : number]),
                    not_run=marker[1] if marker else None,
                )
                opened = None
        elif fence:
            opened, kind = number, fence[2]


def outside(document: Path) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^(\s*)```.*?^\s*```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def code_in(document: Path) -> Iterator[str]:
    """Code within the text, on one line even where the text breaks it."""
    for code in re.findall(r"`([^`]+)`", outside(document)):
        yield re.sub(r"\s+", " ", code)
