"""Every command in the documents is run here, or marked as not, with why."""

import asyncio
import json
import os
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import asyncpg
import click
import pytest

from gateway.cli import main
from tests.docs.commands import (
    COMMANDS,
    DOCUMENTS,
    INLINE_MARKER,
    OTHERS,
    TYPED,
    Block,
    Command,
    blocks,
    code_in,
    outside,
)
from tests.up.running import Up, up

ROOT = Path(__file__).parents[2]
RUN_TIMEOUT_S = 40.0
ALL = [block for document in DOCUMENTS for block in blocks(document)]
TO_RUN = [block for block in ALL if block.kind in COMMANDS and block.not_run is None]
# What some commands end with besides 0.
CODES = {"castgate reconcile": 1}  # there is drift


def test_every_block_says_what_it_is_and_commands_are_in_blocks() -> None:
    assert [block.place for block in ALL if block.kind not in (*COMMANDS, *OTHERS)] == []
    for document in DOCUMENTS:
        indented = [line.strip() for line in outside(document).splitlines() if line.startswith("    ")]
        assert [line for line in indented if TYPED.match(line)] == [], document.name


def test_who_is_not_run_says_why() -> None:
    not_run = [block for block in ALL if block.not_run is not None]
    assert [block.place for block in not_run if block.kind not in COMMANDS] == []
    assert len(not_run) < len(TO_RUN) + 8
    named = [name for block in not_run for name in re.findall(r"tests/[\w/.]*\w", block.not_run or "")]
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_within_the_text_are_there_with_their_options(document: Path) -> None:
    verbs = set(re.findall(r"^\./dev (\w+)", (ROOT / "dev").read_text(), re.MULTILINE))
    for code in code_in(document):
        words = code.split()
        if words[0] == "castgate" and len(words) > 1:
            command: click.Command = main
            options = []
            for word in words[1:]:
                if word.startswith("--"):
                    options.append(word)
                elif isinstance(command, click.Group) and not options and word in command.commands:
                    command = command.commands[word]
            known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            assert command is not main or options == ["--help"], code
            assert set(options) <= known, f"{document.name}: {code}"
        elif words[0] == "./dev" and len(words) > 1:
            assert words[1] in verbs, f"{document.name}: {code}"
            assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), code
        elif words[:2] == ["python", "-m"]:
            assert (ROOT / f"{words[2].replace('.', '/')}.py").exists(), code
        elif TYPED.match(code):
            assert INLINE_MARKER.search(document.read_text()), f"{document.name}: {code}"


class Shell:
    """Somebody at a terminal, in whose one shell all of a document's commands are typed."""

    def __init__(self, one: Up) -> None:
        demo = one.demo
        served = next(process for process in one.family() if "serve" in process.cmdline())
        self._places = {
            "http://127.0.0.1:8080": demo["base_url"],
            "http://127.0.0.1:9090": demo["admin_url"],
            "http://GATEWAY:9090": demo["admin_url"],
            ".castgate/demo.json": str(one.data_dir / "demo.json"),
        }
        environ = {
            **os.environ,
            "DATABASE_URL": demo["database_url"],
            "REDIS_URL": demo["redis_url"],
            "UPSTREAM_URL": demo["upstream_url"],
            "COST_PER_CAST_CENTS": "1",
            "KEY": demo["api_key"],
            "PID": str(served.pid),
            "ADMIN_TOKEN": "",
        }
        self._bash = subprocess.Popen(
            ["bash", "--norc"], cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.type(f'castgate() {{ "{sys.executable}" -m gateway "$@"; }}')

    def type(self, text: str) -> tuple[int, str]:
        """The exit code, and what came on standard output."""
        for named, real in self._places.items():
            text = text.replace(named, real)
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{text}\nprintf '\\n@@ %s\\n' $?\n")
        self._bash.stdin.flush()
        said = []
        for line in self._bash.stdout:
            if line.startswith("@@ "):
                return int(line[3:]), "".join(said)
            said.append(line)
        raise AssertionError(f"the shell ended at {text}")

    def close(self) -> None:
        for stream in (self._bash.stdin, self._bash.stdout):
            assert stream is not None
            stream.close()
        self._bash.wait(RUN_TIMEOUT_S)


def test_there_is_something_to_run() -> None:
    assert {block.document for block in TO_RUN} >= {"README.md", "docs/policies.md", "docs/runbook.md"}


@pytest.mark.timeout(300)
def test_what_is_to_be_typed_does_what_is_shown(tmp_path: Path) -> None:
    """One gateway for all documents, the README first: a person would have it, too."""
    with up(tmp_path, "--ephemeral") as running:
        running.wait_for("ready ")
        for document in sorted({block.document for block in TO_RUN}):
            shell = Shell(running)
            for block in TO_RUN:
                if block.document == document:
                    _typed(block, shell, running)
            shell.close()


def _typed(block: Block, shell: Shell, running: Up) -> None:
    for command in block.commands():
        _happens_before(command, running)
        code, said = shell.type(command.text)
        assert code == CODES.get(command.text, 0), f"{block.place}: {command.text}\n{said}"
        _is_as_shown(block, command, said)
        _happens_after(command, said)


def _is_as_shown(block: Block, command: Command, said: str) -> None:
    """Ids, times and amounts differ; statuses, the names of fields and keys, and the heads of tables do not."""
    shown = "\n".join(command.shown)
    told = f"{block.place}: {command.text}\nshows\n{shown}\nand says\n{said}"
    for status in re.findall(r"^HTTP/1\.1 .*$", shown, re.MULTILINE):
        assert status in said, told
    for field in re.findall(r"^([A-Z][\w-]+): ", shown, re.MULTILINE):
        assert f"{field}: " in said, told
    assert set(re.findall(r'"(\w+)":', shown)) <= set(re.findall(r'"(\w+)":', said)), told
    for pair in re.findall(r'"(?:plan|error|status)": "[^"]*"', shown):
        assert pair in said, told
    for heads in re.findall(r"^[A-Z]{4,}(?: +[A-Z ]+)+$", shown, re.MULTILINE):
        assert heads.split() in [line.split() for line in said.splitlines()], told


def _happens_before(command: Command, running: Up) -> None:
    """What the text around a command says has happened."""
    if command.text == "castgate reconcile":
        asyncio.run(_drifted(running.demo["database_url"]))
    if "/audit" in command.text:
        _set_budget(running.demo)


async def _drifted(database_url: str) -> None:
    """Somebody has written to the counters by hand."""
    connection = await asyncpg.connect(database_url)
    account = await connection.fetchval("SELECT account_id FROM usage_counters WHERE calls > 0 LIMIT 1")
    assert account is not None, "nothing was cast"
    await connection.execute("UPDATE usage_counters SET used_microcents = 0 WHERE account_id = $1", account)
    await connection.close()


def _set_budget(demo: dict[str, str]) -> None:
    """As the page does it."""
    url = f"{demo['admin_url']}/console/accounts/{demo['account_id']}/budget"
    body = b'{"period": "daily", "hard_limit_cents": 2500}'
    headers = {"X-Castgate-Console": "1", "Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers, method="PUT"), timeout=20).close()


def _happens_after(command: Command, said: str) -> None:
    if "/v1/billing/checkout" in command.text:  # "Open the url, press Pay"
        form = {"how": "pay", "email": "person@example.com", "card": "4242 4242 4242 4242"}
        url = json.loads(said)["url"]
        urllib.request.urlopen(url, data=urllib.parse.urlencode(form).encode(), timeout=20).close()
