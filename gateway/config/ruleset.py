"""All files of ``policies/`` together: what they contradict each other in, and the Rules they make."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gateway.config.errors import Position, Problem, key_text, near_miss, shown
from gateway.config.policies import PoliciesFile, PolicySpec
from gateway.config.settings import Settings
from gateway.config.yaml_nodes import Document
from gateway.policy.rules import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFile:
    """One file; ``content`` is None where it was refused."""

    document: Document
    content: PoliciesFile | None


def check_together(files: Sequence[RuleFile], config: Document, default_plan: str | None) -> Iterator[Problem]:
    """Mistakes between files: names and routes taken twice, and references to what is nowhere.

    A reference is not missed while some file is refused, for it may be there; nor is a default plan of None.
    """
    yield from _names_taken_twice(files)
    yield from _routes_taken_twice(files)
    if all(file.content is not None for file in files):
        yield from _limits_of_plans(files)
        plans = sorted(name for file in files if file.content for name in file.content.plans)
        if default_plan is not None and default_plan not in plans:
            path = ("billing", "default_plan")
            message = f'no plan is called "{shown(default_plan)}"{near_miss(default_plan, plans)}'
            yield Problem(position=config.position(path), key=key_text(path), message=message)


def compiled(files: Iterable[RuleFile], *, version: str, settings: Settings) -> Rules:
    """The Rules of files in which nothing is wrong."""
    contents = [file.content for file in files if file.content]
    return Rules(
        version=version,
        policies=tuple(policy.compiled() for content in contents for policy in content.policies),
        plans={name: plan.compiled(name) for content in contents for name, plan in content.plans.items()},
        default_plan=settings.billing.default_plan,
    )


def _policies(files: Iterable[RuleFile]) -> Iterator[tuple[Document, int, PolicySpec]]:
    for file in files:
        if file.content:
            for place, policy in enumerate(file.content.policies):
                yield file.document, place, policy


def _names_taken_twice(files: Sequence[RuleFile]) -> Iterator[Problem]:
    policies: dict[str, Position] = {}
    for document, place, policy in _policies(files):
        path = ("policies", place, "name")
        position = document.position(path)
        if policy.name in policies:
            message = f'duplicate policy "{policy.name}", first at {policies[policy.name]}'
            yield Problem(position=position, key=key_text(path), message=message)
        policies.setdefault(policy.name, position)
    plans: dict[str, Position] = {}
    for file in files:
        for name in file.content.plans if file.content else ():
            position = file.document.key_position(("plans", name))
            if name in plans:
                message = f'duplicate plan "{name}", first at {plans[name]}'
                yield Problem(position=position, key=key_text(("plans", name)), message=message)
            plans.setdefault(name, position)


def _routes_taken_twice(files: Sequence[RuleFile]) -> Iterator[Problem]:
    """Two policies for one path and method; no methods is every method."""
    taken: dict[str, list[tuple[PolicySpec, Position]]] = {}
    for document, place, policy in _policies(files):
        path = ("policies", place, "match")
        position = document.position((*path, "path"))
        methods = frozenset(policy.match.methods)
        for other, other_position in taken.setdefault(policy.match.path, []):
            other_methods = frozenset(other.match.methods)
            shared = methods & other_methods if methods and other_methods else methods | other_methods
            if shared or not (methods or other_methods):
                route = f"{', '.join(sorted(shared)) or 'every method of'} {policy.match.path}"
                message = f'two policies for one route: {route} is taken by "{other.name}" at {other_position}'
                yield Problem(position=position, key=key_text(path), message=message)
                break
        taken[policy.match.path].append((policy, position))


def _limits_of_plans(files: Sequence[RuleFile]) -> Iterator[Problem]:
    """A plan's limit of a name that no policy has; or one below what a call weighs, so that none would pass."""
    heaviest: dict[str, tuple[int, str]] = {}  # by the limit's name: the most that a call weighs, and in which policy
    for _, _, policy in _policies(files):
        for limit in policy.rate_limits:
            weight = 1 if limit.burst else limit.weight.default  # a burst that was set stays as it is
            heaviest[limit.name] = max(heaviest.get(limit.name, (0, "")), (weight, policy.name))
    for file in files:
        for plan_name, plan in file.content.plans.items() if file.content else ():
            for name, override in plan.rate_limits.items():
                path = ("plans", plan_name, "rate_limits", name)
                if name not in heaviest:
                    message = f'no policy has a rate limit called "{name}"{near_miss(name, sorted(heaviest))}'
                    yield Problem(position=file.document.key_position(path), key=key_text(path), message=message)
                elif override.limit < heaviest[name][0]:
                    weight, policy_name = heaviest[name]
                    message = (
                        f'expected at least {weight}, what a call of policy "{policy_name}" weighs, '
                        f"found {override.limit}"
                    )
                    at = (*path, "limit")
                    yield Problem(position=file.document.position(at), key=key_text(at), message=message)
