"""The benchmark of a lone call: it measures both ways of waiting."""

from dataclasses import astuple

from bench import lone_call


async def test_it_measures_with_and_without_a_vigil(redis_url: str) -> None:
    figures = await lone_call.measure(redis_url, 1)
    assert all(figure > 0 for figure in astuple(figures))
