"""Configuration: YAML and environment in, frozen settings and rules out, or every mistake at once."""

from gateway.config.errors import ConfigError, Position, Problem
from gateway.config.loading import Loaded, load
from gateway.config.settings import Settings

__all__ = ["ConfigError", "Loaded", "Position", "Problem", "Settings", "load"]
