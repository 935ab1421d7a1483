"""Executes a Dockerfile's steps in a folder, where no container engine is at hand.

Each stage is a folder that stands for its root. The paths that a stage makes for itself are led there; everything else
(the shell, the base image's ``python``) is this machine's. Only what our Dockerfile says is understood: FROM, WORKDIR,
COPY, RUN, ENV, and the instructions that are read by whoever runs the image.
"""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# What the Dockerfile puts somewhere; a path of the base image's is not among them.
_OURS = re.compile(r"(?<![\w./-])/(?=(?:opt/castgate|etc/castgate|src)\b)")


@dataclass(kw_only=True)
class Image:
    """What the last stage came to. ``root`` is its root; ``environment`` and ``commands`` speak of paths below it."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)  # instruction -> what it says

    def command(self, instruction: str) -> list[str]:
        """The exec form of CMD or HEALTHCHECK's, found on the image's PATH."""
        program, *arguments = json.loads(self.said[instruction][self.said[instruction].index("[") :])
        return [shutil.which(program, path=self.environment["PATH"]) or program, *arguments]


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions in order, continued lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def build(context: Path, folder: Path, **given: str) -> Image:
    """Executes ``context/Dockerfile`` in ``folder``; ``given`` are ARGs.

    Raises CalledProcessError with the output of a step that fails.
    """
    root = folder / "root"
    stages: dict[str, Path] = {}
    bin_folder = folder / "base"
    bin_folder.mkdir()
    (bin_folder / "python").symlink_to(getattr(sys, "_base_executable", sys.executable))
    image = Image(root=root)
    name, workdir, arguments = "", "/", dict[str, str]()
    for word, rest in instructions((context / "Dockerfile").read_text()):
        if word == "ARG":
            key, _, value = rest.partition("=")
            arguments[key] = given.get(key, value)
        elif word == "FROM":
            if root.exists():  # the stage before: out of the way, so that the next has the same root
                stages[name] = root.rename(folder / f"stage-{name}")
            root.mkdir()
            image, workdir = Image(root=root), "/"
            base, _, name = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], rest).partition(" AS ")
            image.said["FROM"] = base
        elif word == "WORKDIR":
            workdir = rest
            (root / workdir.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            _copy(rest, context, stages, root / workdir.lstrip("/"), root)
        elif word == "ENV":
            pairs = (pair.partition("=")[::2] for pair in rest.split())
            image.environment |= {key: _OURS.sub(f"{root}/", value) for key, value in pairs}
        elif word == "RUN":
            subprocess.run(
                ["sh", "-ec", _OURS.sub(f"{root}/", rest)],
                cwd=root / workdir.lstrip("/"),
                env={**_of_the_builder(), **arguments, **image.environment, "PATH": f"{bin_folder}:/usr/bin:/bin"},
                check=True,
                capture_output=True,
                text=True,
            )
        else:
            image.said[word] = rest
    return image


def _of_the_builder() -> Mapping[str, str]:
    """What a builder passes on: where packages come from, and nothing of this environment's Python."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST")) and name != "PIP_TARGET"
    }


def _copy(rest: str, context: Path, stages: Mapping[str, Path], workdir: Path, root: Path) -> None:
    origin = context
    if match := re.match(r"--from=(\w+) ", rest):
        origin, rest = stages[match[1]], rest[match.end() :]
    *sources, target = rest.split()
    place = root / target.lstrip("/") if target.startswith("/") else workdir / target
    for source in sources:
        found = origin / source.lstrip("/")
        if origin == context:
            assert not _is_ignored(source, (context / ".dockerignore").read_text()), f"{source} is not in the context"
        if found.is_dir():
            shutil.copytree(found, place, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.pyc"))
            continue
        file = place / found.name if target.endswith("/") else place
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(found, file)


def _is_ignored(source: str, ignore_file: str) -> bool:
    ignored = False
    for line in ignore_file.splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").strip("/")
            path = source.strip("/")
            if fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/") or pattern.startswith(f"{path}/"):
                ignored = not line.startswith("!")
    return ignored
