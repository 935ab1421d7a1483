"""slowhttptest's four modes at once against a gateway: when they end, it serves as before."""

import re
import shutil
import subprocess
import urllib.request

import pytest

from bench.plain_gateway import plain_gateway
from bench.transfer import byte_upstream

CONNECTIONS = 300  # of each mode: together more than there are upstream connections
SECONDS = 4
MODES = {
    "slow headers": ("-H", "-i", "1"),
    "slow body": ("-B", "-i", "1", "-s", "8192"),
    "ranges": ("-R",),
    "slow read": ("-X", "-w", "10", "-y", "20", "-n", "1", "-z", "32", "-k", "3"),
}


@pytest.mark.skipif(shutil.which("slowhttptest") is None, reason="apt-get install slowhttptest")
def test_the_service_is_available_at_the_end_of_all_four_modes() -> None:
    with byte_upstream() as upstream_url, plain_gateway(upstream_url) as gateway:
        url = f"http://127.0.0.1:{gateway.port}/bytes/1"
        size = ("-c", str(CONNECTIONS), "-r", str(CONNECTIONS), "-l", str(SECONDS), "-p", "20")
        attacks = {
            name: subprocess.Popen(["slowhttptest", *size, *mode, "-u", url], stdout=subprocess.PIPE, text=True)
            for name, mode in MODES.items()
        }
        said = {name: attack.communicate(timeout=50)[0] for name, attack in attacks.items()}
        for name, text in said.items():
            plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
            assert re.findall(r"service available: +(\w+)", plain)[-1:] == ["YES"], f"{name}:\n{plain}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert (answer.status, len(answer.read())) == (200, 1024 * 1024)
