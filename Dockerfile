# Castgate for production: the program, its hot path compiled, its locked dependencies and its configuration; no compiler, no
# pip, none of the servers that ./dev up embeds. tests/deploy/test_image.py executes these steps.
#
#   docker build -t castgate .
#   docker run --read-only --tmpfs /tmp -p 8080:8080 --env-file castgate.env castgate
#
# For builds that repeat, pin both bases by digest: --build-arg PYTHON=3.13-slim-trixie@sha256:… --build-arg BUILD=…
ARG PYTHON=3.13-slim-trixie
# The same Python on the same system, with a C compiler.
ARG BUILD=3.13-trixie

FROM python:${BUILD} AS build
ARG OPTIMIZATION=2
WORKDIR /src
COPY requirements/build.txt requirements/build.txt
RUN python -m venv /opt/castgate \
 && /opt/castgate/bin/pip install --no-cache-dir --no-compile --disable-pip-version-check \
        --require-hashes --only-binary=:all: -r requirements/build.txt
COPY pyproject.toml README.md config.yaml ./
COPY migrations/ migrations/
COPY policies/ policies/
COPY gateway/ gateway/
COPY scripts/compile_hot_path.py scripts/
RUN /opt/castgate/bin/pip install --no-cache-dir --no-compile --disable-pip-version-check \
        --no-deps --no-build-isolation . \
 && /opt/castgate/bin/python -m scripts.compile_hot_path --optimization ${OPTIMIZATION} \
 && /opt/castgate/bin/pip uninstall -y -q asyncpg-stubs types-pyyaml mypy ast-serialize librt mypy-extensions pathspec setuptools \
 && /opt/castgate/bin/python -m compileall -q /opt/castgate/lib \
 && /opt/castgate/bin/pip uninstall -y -q pip

FROM python:${PYTHON}
COPY --from=build /opt/castgate /opt/castgate
COPY config.yaml /etc/castgate/config.yaml
COPY policies/ /etc/castgate/policies/
# Inside a container everything may connect to the port that is published. The admin listener stays on loopback until
# ADMIN_HOST and ADMIN_TOKEN are set.
ENV PATH=/opt/castgate/bin:/usr/local/bin:/usr/bin:/bin \
    CASTGATE_CONFIG=/etc/castgate/config.yaml \
    HOST=0.0.0.0 \
    HOME=/tmp \
    SPOOL_DIR=/var/lib/castgate/spool \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# SPOOL_DIR: mount a volume at /var/lib/castgate that user 10001 may write to. Without one charged calls wait in memory
# while Postgres is away, and a line in the log says so.
# A number, so that an orchestrator can see that it is not root. It owns nothing here; /tmp is all that it writes to.
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 CMD ["python", "-m", "gateway.health"]
CMD ["castgate", "serve"]
