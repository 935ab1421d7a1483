"""``config.yaml``: Postgres, Redis, and the charged calls' way into the one and out of the other."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from gateway.config.models import Section
from gateway.config.redis_address import read_redis_url
from gateway.config.redis_url import redis_url
from gateway.config.scalars import (
    choice,
    database_url,
    duration_s,
    expected,
    months_kept,
    optional,
    reader_of,
    size_bytes,
    text,
    whole,
)

# Where Redis is a cluster and nobody says otherwise: some five for each primary of the smallest one, so that each has
# its share of the accounts, and not so many that batches become small. Each worker has a connection for each.
CLUSTER_PARTITIONS = 16
DatabaseUrl = Annotated[str, database_url()]
RedisUrl = Annotated[str, redis_url()]


def _partitions() -> BeforeValidator:
    read_count = reader_of(whole(1, 1024))

    def read(value: object) -> int | None:
        if value is None or value == "auto":
            return None
        if isinstance(value, str) and not value.strip().lstrip("+-").isdigit():
            raise expected("auto or an integer of 1 to 1024", value)
        return int(read_count(value))

    return BeforeValidator(read)


class Database(Section):
    """Postgres, shared with Phase 1."""

    url: DatabaseUrl = Field(repr=False)
    # Per worker. The ledger, seeding and identification each take one at a time; the rest is for hosted endpoints.
    pool_max: Annotated[int, whole(1, 100)] = 6
    connect_timeout_s: Annotated[float, duration_s("10ms", "1m")] = Field(default=2.0, alias="connect_timeout")
    # No statement of ours touches more than a batch of rows; a longer one waits for a lock or for a dying server.
    statement_timeout_s: Annotated[float, duration_s("10ms", "1m")] = Field(default=2.0, alias="statement_timeout")
    acquire_timeout_s: Annotated[float, duration_s("10ms", "1m")] = Field(default=1.0, alias="acquire_timeout")
    # How long a call may wait for Postgres to admit it while Redis is away; it includes the 15 ms in which all workers
    # notice that. Then the worker decides by itself.
    admission_timeout_s: Annotated[float, duration_s("1ms", "10s")] = Field(default=0.045, alias="admission_timeout")


class Redis(Section):
    """One Redis, a Redis Cluster, or what Sentinels watch: counters and holds that can be rebuilt."""

    url: RedisUrl = Field(repr=False)
    # None (auto): 1 where one server has all data, CLUSTER_PARTITIONS on a cluster.
    # Changing it on a running fleet loses sight of holds and windows: stop all gateways first.
    partitions_wanted: Annotated[int | None, _partitions()] = Field(default=None, alias="partitions")
    # A script call takes about 1 ms; a store that hangs is as lost as one that refuses.
    timeout_s: Annotated[float, duration_s("1ms", "10s")] = Field(default=0.025, alias="timeout")
    connect_timeout_s: Annotated[float, duration_s("1ms", "1m")] = Field(default=1.0, alias="connect_timeout")
    # Redis serves nobody else while the script runs: 256 calls are about 2 ms.
    batch_max: Annotated[int, whole(1, 4096)] = 256

    @property
    def partitions(self) -> int:
        """By how many hash tags the accounts are shared out."""
        if self.partitions_wanted is not None:
            return self.partitions_wanted
        return CLUSTER_PARTITIONS if read_redis_url(self.url).form == "cluster" else 1


class Spool(Section):
    """Where charged calls wait on this machine's disk while Postgres is away."""

    # Seen from the folder of config.yaml; it must outlive the gateway, and belongs to one database. Blank: no spool,
    # events wait in memory.
    folder: Annotated[str | None, optional(text("a folder", length_max=1000))] = ".castgate/spool"
    # Of all files there: a million events, some 15 minutes of 1,000 casts a second.
    bytes_max: Annotated[int, size_bytes("64KiB", "1024GiB")] = 256 * 1024**2
    # A spool that nobody has emptied for so long is not watched; the windows of most budgets are over too.
    age_max_s: Annotated[float, duration_s("1s", "365d")] = Field(default=7 * 86400.0, alias="age_max")
    # How long an event waits for company on its way to the disk; a killed process loses as much.
    fsync_interval_s: Annotated[float, duration_s("1ms", "10s")] = Field(default=0.02, alias="fsync_interval")
    # What becomes of an event for which there is no room here nor in the queue. hold: it counts as held until its
    # worker ends and is then charged as expired; drop: it is not charged; refuse: as hold, and calls that cost are
    # answered 503 until there is room.
    at_bound: Annotated[Literal["hold", "drop", "refuse"], choice("hold", "drop", "refuse")] = "hold"


class Ledger(Section):
    """Charged calls on their way to Postgres."""

    # Holds stay in Redis for this long after a call, so that a limit is exact again 20 ms after the last cast; where
    # many calls come three times as long (docs/decisions/0059, 0063).
    flush_interval_s: Annotated[float, duration_s("1ms", "10s")] = Field(default=0.02, alias="flush_interval")
    # Rows of one transaction: some 10 ms of Postgres. Many calls make one of 400 and more; where a thousand
    # connections keep the loop busy, each write waits for several of its rounds, and smaller ones fall ever behind.
    batch_max: Annotated[int, whole(1, 10_000)] = 2_000
    queue_max: Annotated[int, whole(1, 10_000_000)] = 100_000  # per worker; about 500 bytes each: 50 MiB
    # Gets cast ids as $1::text[] and costs in cents as $2::numeric[]; blank where there is no such column.
    cast_cost_sql: Annotated[str | None, optional(text("an SQL statement", length_max=10_000))] = (
        "UPDATE casts SET cost_cents = new.cost_cents FROM unnest($1::text[], $2::numeric[]) AS new(id, cost_cents) "
        "WHERE casts.id = new.id::uuid"
    )
    # What casts cost, for castgate reconcile: gets cast ids as $1::text[] and returns rows (id, cost_cents), id as
    # text; blank where casts cannot be read.
    cast_read_sql: Annotated[str | None, optional(text("an SQL statement", length_max=10_000))] = (
        "SELECT casts.id::text AS id, casts.cost_cents FROM casts WHERE casts.id = ANY($1::text[]::uuid[])"
    )
    # How often one worker of a gateway compares a few accounts' ledger, counters and Redis for the drift metrics: some
    # ms of each store. 0s: never.
    drift_interval_s: Annotated[float, duration_s("0s", "1d")] = Field(default=60.0, alias="drift_interval")
    # Full months before this one whose events castgate maintain keeps; it drops the others. 0: all are kept. At least
    # 2, so that no window but a total begins in what is dropped and still changes.
    retention_months: Annotated[int, months_kept()] = 0
    # Months whose partitions are made ahead, by a worker or by castgate maintain.
    partitions_ahead: Annotated[int, whole(1, 24)] = 3
    spool: Spool = Spool()
