"""``./dev sbom``: what a production image is made of, as a CycloneDX bill of materials; or its licences, as a list.

What is in it is what ``requirements/base.txt`` locks for the image's platform, with the hashes that pip checks;
licences and dependencies are those that the installed packages state of themselves. The same input gives the same
output: no time, no random number, so that two builds can be compared.
"""

import hashlib
import re
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import cast

import click
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gateway import __version__

ROOT = Path(__file__).resolve().parent.parent
LOCK_FILE = ROOT / "requirements" / "base.txt"
_LOCKED = re.compile(
    r"^([a-z0-9][a-z0-9._-]*)==([^\s;\\]+)(?: ; ([^\\\n]*))?((?: \\\n +--hash=sha256:[0-9a-f]+)+)", re.MULTILINE
)
# The platform of the Dockerfile's base image.
_TARGET = {
    "sys_platform": "linux",
    "platform_system": "Linux",
    "os_name": "posix",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "python_version": "3.13",
    "python_full_version": "3.13.0",
}
# Packages that state no SPDX expression: what they write instead. Each name is one that SPDX has.
_SPDX = {
    "Apache 2.0": "Apache-2.0",
    "Apache-2.0": "Apache-2.0",
    "BSD-3-Clause": "BSD-3-Clause",
    "MIT": "MIT",
    "MIT License": "MIT",
    "MPL-2.0": "MPL-2.0",
    "PSF-2.0": "PSF-2.0",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
}
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One locked distribution."""

    name: str
    version: str
    hashes: tuple[str, ...]  # SHA-256 of each file that pip may take
    licence: str
    needs: tuple[str, ...]


def packages() -> list[Package]:
    """What is locked for production, by name."""
    return sorted(_packages(), key=lambda package: package.name)


def _packages() -> Iterator[Package]:
    extras = {canonicalize_name(one.name): one.extras for one in _direct()}
    for name, version, marker, hashes in _LOCKED.findall(LOCK_FILE.read_text()):
        if marker and not Marker(marker.strip()).evaluate(_TARGET):
            continue
        stated = cast(Message, metadata.metadata(name))
        if stated["Version"] != version:
            raise SystemExit(f"sbom: {name} {stated['Version']} is installed, but {version} is locked; run ./dev again")
        yield Package(
            name=name,
            version=version,
            hashes=tuple(re.findall(r"sha256:([0-9a-f]+)", hashes)),
            licence=licence_of(stated),
            needs=_needs(name, extras.get(name, set())),
        )


def _needs(name: str, extras: "set[str]") -> tuple[str, ...]:
    """The packages that ``name`` asks for on the image's platform, by their normalised names."""
    asked = [Requirement(text) for text in metadata.requires(name) or ()]
    return tuple(sorted({canonicalize_name(one.name) for one in asked if _applies(one, extras)}))


def _applies(asked: Requirement, extras: "set[str]") -> bool:
    return asked.marker is None or any(asked.marker.evaluate({**_TARGET, "extra": extra}) for extra in {"", *extras})


def _direct() -> list[Requirement]:
    """What castgate itself asks for."""
    return [one for text in metadata.requires("castgate") or () if _applies(one := Requirement(text), set())]


def licence_of(stated: Message) -> str:
    """As SPDX names it: the expression, else the field's text, else the classifiers together."""
    expression = stated.get("License-Expression")
    if expression:
        return str(expression)
    written = str(stated.get("License") or "").strip()
    classifiers = [line for line in stated.get_all("Classifier") or [] if line.startswith("License ::")]
    told = sorted({_SPDX[line] for line in classifiers if line in _SPDX})
    if len(told) > 1:
        return " OR ".join(told)
    return _SPDX.get(written) or (told[0] if told else UNKNOWN)


def bill_of_materials() -> str:
    """CycloneDX 1.6, JSON."""
    found = packages()
    ours = Component(
        name="castgate",
        version=__version__,
        type=ComponentType.APPLICATION,
        bom_ref="castgate",
        purl=PackageURL("pypi", name="castgate", version=__version__),
    )
    components = {package.name: _component(package) for package in found}
    # The serial number follows from the content: the same lock file is the same bill.
    digest = hashlib.sha256(repr((__version__, found)).encode()).digest()
    bom = Bom(components=components.values(), serial_number=uuid.UUID(bytes=digest[:16], version=4))
    bom.metadata.component = ours
    bom.metadata.timestamp = None  # type: ignore[assignment]  # optional in the schema; a time is no part of the content
    bom.register_dependency(ours, [components[canonicalize_name(one.name)] for one in _direct()])
    for package in found:
        bom.register_dependency(
            components[package.name], [components[name] for name in package.needs if name in components]
        )
    return JsonV1Dot6(bom).output_as_string(indent=2)


def _component(package: Package) -> Component:
    licence = package.licence
    compound = " " in licence
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{package.name}@{package.version}",
        purl=PackageURL("pypi", name=package.name, version=package.version),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=one) for one in package.hashes],
        licenses=[LicenseExpression(licence) if compound else DisjunctiveLicense(id=licence)]
        if licence != UNKNOWN
        else [],
    )


def licences() -> str:
    """The list of docs/licences.md."""
    rows = [f"| {package.name} | {package.version} | {package.licence} |" for package in packages()]
    head = [
        "# Licences of what a production image contains",
        "",
        "Written by `./dev sbom --licences > docs/licences.md`, from what the packages state of themselves.",
        "",
        "| package | version | licence |",
        "| --- | --- | --- |",
    ]
    return "\n".join([*head, *rows]) + "\n"


@click.command()
@click.option("--licences", "wants_licences", is_flag=True, help="A list of the licences, in Markdown.")
def main(*, wants_licences: bool) -> None:
    """What a production image is made of: a CycloneDX 1.6 bill of materials, on standard output."""
    sys.stdout.write(licences() if wants_licences else bill_of_materials() + "\n")


if __name__ == "__main__":
    main(prog_name="./dev sbom")
