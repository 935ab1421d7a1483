"""Castgate: a policy gateway that meters, budgets and bills calls to an unchanged API."""

__version__ = "0.1.0"
