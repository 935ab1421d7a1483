"""A configuration in which nothing is wrong, for tests to make one thing wrong in."""

from collections.abc import Callable

from gateway.config import Loaded

ENVIRON = {
    "UPSTREAM_URL": "http://127.0.0.1:3000",
    "DATABASE_URL": "postgresql://castgate:hunter2@127.0.0.1/castgate",
    "REDIS_URL": "redis://127.0.0.1:6379/0",
    "COST_PER_CAST_CENTS": "1",
    "STRIPE_SECRET_KEY": "sk_test_4eC39HqLyjWDarjtT1zdp7dc",
    "STRIPE_WEBHOOK_SECRET": "whsec_4eC39HqLyjWDarjtT1zdp7dc",
}
CONFIG = """\
upstream: {url: "${UPSTREAM_URL}"}
database: {url: "${DATABASE_URL}"}
redis: {url: "${REDIS_URL}"}
billing:
  stripe_secret_key: ${STRIPE_SECRET_KEY:-}
  stripe_webhook_secret: ${STRIPE_WEBHOOK_SECRET:-}
  default_plan: ${BILLING_PLAN_DEFAULT:-free}
"""
CAST = """\
policies:
  - name: cast
    match: {methods: [POST], path: /v1/cast}
    cost: {fixed: {cents: "${COST_PER_CAST_CENTS}"}}
    rate_limits:
      - {name: per-account, limit: "${RATE_LIMIT_PER_MINUTE:-60}", window: 1m}
"""
PLANS = """\
plans:
  free: {hard_limit_cents: {monthly: 500}}
"""

Write = Callable[..., None]
LoadIt = Callable[..., Loaded]
Refusal = Callable[..., list[str]]
