"""From files and environment to one frozen configuration, or to every reason why not."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from gateway import tls
from gateway.config.environment import BillingVariables
from gateway.config.errors import ConfigError, Problem
from gateway.config.interpolation import Variables
from gateway.config.loaded import Loaded
from gateway.config.models import read_section
from gateway.config.policies import PoliciesFile
from gateway.config.ruleset import RuleFile, check_together, compiled
from gateway.config.settings import Settings
from gateway.config.yaml_nodes import Document, read_document

# Far more than anybody keeps apart by hand, and a folder that is not ours is soon noticed.
FILES_MAX = 1000


def load(config_path: Path, environ: Mapping[str, str]) -> Loaded:
    """Reads ``config_path`` and the policies it names. Raises ConfigError, with all mistakes, if there is any.

    Reads only: may be called again at any time, from any thread, to see whether a change would be accepted.
    """
    problems: list[Problem] = []
    billing = BillingVariables(environ)
    problems.extend(billing.problems)

    config = _document(config_path, billing.variables())
    settings = read_section(Settings, config)
    files_of_tls = _check_tls(config, config_path.parent, settings) if settings else ()
    problems.extend(config.problems)

    warnings: list[str] = []
    variables = billing.variables()
    folder = config_path.parent / (settings.policies if settings else "policies")
    paths, folder_problem = _policy_paths(folder, warnings)
    if folder_problem:
        config.refuse(("policies",), folder_problem)
        problems = [*problems, config.problems[-1]]
    files = [_rule_file(path, variables) for path in paths]
    problems.extend(problem for file in files for problem in file.document.problems)
    default_plan = settings.billing.default_plan if settings else None
    problems.extend(check_together(files, config, None if folder_problem else default_plan))

    if problems or settings is None:
        raise ConfigError(problems)
    rules = compiled(files, version=_version(files, variables, settings.billing.default_plan), settings=settings)
    return Loaded(
        settings=settings,
        rules=rules,
        billing_enabled=not billing.missing(settings),
        warnings=(*warnings, *billing.warnings(settings)),
        files=(config_path, *paths),
        other_files=files_of_tls,
    )


def _check_tls(config: Document, folder: Path, settings: Settings) -> tuple[Path, ...]:
    """Certificates are tried here: a start and a reload with ones that cannot be used are refused like any mistake."""
    listen, upstream = settings.listen.tls, settings.upstream
    files = tuple(folder / name for name in listen.files)
    try:
        if files:
            tls.server_context(*files)
    except tls.TlsError as error:
        config.refuse(("listen", "tls", "certificate"), f"expected a certificate and its key, but {error}")
    authorities = folder / upstream.ca_file if upstream.ca_file else None
    try:
        if authorities is not None:
            tls.client_context(authorities)
    except tls.TlsError as error:
        config.refuse(("upstream", "ca_file"), f"expected a PEM file, but {error}")
    return files


def _policy_paths(folder: Path, warnings: list[str]) -> tuple[list[Path], str]:
    """The files of the folder in order, or why there are none. Hidden files are editors' and Kubernetes' business."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_file())
    except FileNotFoundError:
        return [], f"expected a folder, found none at {folder}"
    except OSError as error:
        return [], f"expected a folder, found {folder}: {error.strerror}"
    paths = [entry for entry in entries if entry.suffix == ".yaml"]
    warnings.extend(f"{entry}: not read, only files named *.yaml are" for entry in entries if entry.suffix == ".yml")
    if len(paths) > FILES_MAX:
        return [], f"expected at most {FILES_MAX} files, found {len(paths)} at {folder}"
    return paths, ""


def _document(path: Path, variables: Variables) -> Document:
    try:
        content = path.read_bytes()
    except OSError as error:
        document = Document(str(path))
        document.unreadable(f"cannot be read: {error.strerror}")
        return document
    return read_document(str(path), content, variables)


def _rule_file(path: Path, variables: Variables) -> RuleFile:
    document = _document(path, variables)
    return RuleFile(document=document, content=read_section(PoliciesFile, document))


def _version(files: Iterable[RuleFile], variables: Variables, default_plan: str) -> str:
    """Sixteen hex digits that change with any text, any variable it uses, and the default plan."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(repr((file.document.file.rpartition("/")[2], file.document.text)).encode())
    digest.update(repr((sorted(variables.used.items()), default_plan)).encode())
    return digest.hexdigest()[:16]
