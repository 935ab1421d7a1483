"""Where the upstream is, where clients connect, and what is made of it elsewhere."""

from pathlib import Path

import pytest
import trustme

from gateway.config import Settings
from gateway.config.addresses import UpstreamAddress
from gateway.hosted.billing_body import return_address
from tests.config.good_files import CONFIG, LoadIt, Refusal

STORES = {"database": {"url": "postgresql://127.0.0.1/x"}, "redis": {"url": "redis://127.0.0.1:6379/0"}}
HTTP = UpstreamAddress(text="http://a.internal", host="a.internal", port=80)
HTTPS = UpstreamAddress(text="https://[::1]:8443/", host="::1", port=8443, tls=True)
UNIX = UpstreamAddress(text="unix:/run/cast.sock", path="/run/cast.sock")


@pytest.mark.parametrize(
    ("written", "addresses"),
    [
        ("http://a.internal", (HTTP,)),
        ("http://a.internal, https://[::1]:8443/,unix:/run/cast.sock", (HTTP, HTTPS, UNIX)),
    ],
)
def test_an_upstream_has_one_address_or_several(
    load_it: LoadIt, written: str, addresses: tuple[UpstreamAddress, ...]
) -> None:
    assert load_it(UPSTREAM_URL=written).settings.upstream.addresses == addresses
    listed = CONFIG.replace('"${UPSTREAM_URL}"', str([one.text for one in addresses]))
    assert load_it({"config.yaml": listed}).settings.upstream.addresses == addresses


def test_each_address_says_what_its_host_field_is() -> None:
    assert [one.authority for one in (HTTP, HTTPS, UNIX)] == ["a.internal", "[::1]:8443", "localhost"]


def test_certificates_are_watched_and_seen_from_the_configurations_folder(load_it: LoadIt, tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("localhost")
    files = {
        "config.yaml": CONFIG + "listen: {tls: {certificate: tls/a.pem, key: tls/a.key}}\n",
        "tls/a.pem": issued.cert_chain_pems[0].bytes(),
        "tls/a.key": issued.private_key_pem.bytes(),
    }
    assert load_it(files).other_files == (Path("tls/a.pem"), Path("tls/a.key"))


def test_a_key_of_another_certificate_is_refused(refusal: Refusal) -> None:
    issued, other = trustme.CA().issue_cert("localhost"), trustme.CA().issue_cert("localhost")
    files = {
        "config.yaml": CONFIG + "listen: {tls: {certificate: a.pem, key: a.key}}\n",
        "a.pem": issued.cert_chain_pems[0].bytes(),
        "a.key": other.private_key_pem.bytes(),
    }
    assert refusal(files) == [
        "config.yaml:8:29: listen.tls.certificate: expected a certificate and its key, but a.pem and a.key are no "
        "certificate and its key: KEY_VALUES_MISMATCH"
    ]


def test_a_policy_may_have_another_limit_for_bodies(load_it: LoadIt) -> None:
    text = "policies: [{name: a, match: {path: /a}, body_bytes_max: 256KiB}, {name: b, match: {path: /b}}]"
    bodies = [policy.body_bytes_max for policy in load_it({"policies/cast.yaml": text}).rules.policies]
    assert bodies == [256 * 1024, None]


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ({"port": 80}, "http://127.0.0.1:80/"),
        ({"host": "::1", "tls": {"certificate": "a", "key": "b"}}, "https://[::1]:8080/"),
        ({"host": "unix:/run/castgate.sock"}, "http://localhost/"),
    ],
)
def test_stripes_pages_lead_back_to_where_clients_connect(listen: dict[str, object], address: str) -> None:
    settings = Settings.model_validate({**STORES, "upstream": {"url": "http://a"}, "listen": listen})
    assert return_address(settings, "success_url", None, None) == address
