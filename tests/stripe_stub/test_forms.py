import pytest

from stripe_stub.errors import ApiError
from stripe_stub.forms import parse_form


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("a=1&b=", {"a": "1", "b": ""}),
        ("a=%C3%A9+e", {"a": "é e"}),
        ("a[b][c]=1&a[b][d]=2", {"a": {"b": {"c": "1", "d": "2"}}}),
        ("a[0][b]=1&a[0][c]=2&a[1][b]=3", {"a": [{"b": "1", "c": "2"}, {"b": "3"}]}),
        ("a[10]=x&a[2]=y", {"a": ["y", "x"]}),
        ("expand[]=a&expand[]=b", {"expand": ["a", "b"]}),
        ("a=1&a=2", {"a": "2"}),
    ],
)
def test_brackets_nest(text: str, values: dict[str, object]) -> None:
    assert parse_form(text) == values


@pytest.mark.parametrize("text", ["a[b=1", "[a]=1", "a]b=1", "a=1&a[b]=2", "a[b][c][d][e][f][g]=1", "a=%FF"])
def test_what_does_not_nest_is_refused(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_form(text)
    assert caught.value.status == 400


def test_too_many_parameters_are_refused() -> None:
    with pytest.raises(ApiError):
        parse_form("&".join(f"a[{number}]=1" for number in range(1001)))
