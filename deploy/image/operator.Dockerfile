# The operator. See README.md beside this file.
#
#   docker build -t pgherd-operator:0.1.0 -f deploy/image/operator.Dockerfile .
#
# The secrets `pip.conf` and `ca.crt` are as in Dockerfile.

ARG BASE=debian:trixie-slim
ARG UID=65532

# ---------------------------------------------------------------------------------------------------------- system
FROM ${BASE} AS system

ARG UID

RUN groupadd --system --gid "$UID" pgherd \
 && useradd --system --uid "$UID" --gid "$UID" --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin pgherd \
 && apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ca-certificates python3 \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/log/*.log /var/log/apt \
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} +

# ------------------------------------------------------------------------------------------------------- libraries
# Built apart, so that pip and the builder are not in the image.
FROM system AS libraries

RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/build \
 && python3 -m venv --without-pip /opt/libraries
COPY deploy/image/build.lock deploy/image/operator.lock /opt/build/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt \
    /opt/build/bin/pip install --disable-pip-version-check --no-cache-dir \
        --only-binary :all: --require-hashes -r /opt/build/build.lock \
 && /opt/build/bin/pip --python /opt/libraries/bin/python install --disable-pip-version-check --no-cache-dir \
        --only-binary :all: --require-hashes -r /opt/build/operator.lock

# --------------------------------------------------------------------------------------------------------- package
# The only stage that a change of the sources builds again: some seconds.
FROM libraries AS package

COPY pyproject.toml README.md LICENSE /opt/source/
COPY src /opt/source/src
RUN /opt/build/bin/pip wheel --disable-pip-version-check --no-index --no-deps --no-build-isolation \
        --wheel-dir /opt/wheel /opt/source \
 && /opt/build/bin/pip --python /opt/libraries/bin/python install --disable-pip-version-check --no-index --no-deps \
        --target /opt/pgherd /opt/wheel/*.whl

# -------------------------------------------------------------------------------------------------------- operator
FROM system AS operator

ARG UID
LABEL org.opencontainers.image.title="pgherd-operator" \
      org.opencontainers.image.description="Runs PostgresCluster objects: distributed PostgreSQL on Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0"

ENV PATH=/opt/pgherd/bin:/opt/libraries/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/opt/pgherd \
    PGHERD_PLATFORM=kubernetes \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    LANG=C.UTF-8

USER ${UID}:${UID}
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "pgherd.operator"]

# Last, what changes most: nothing is to be done again after it.
COPY --from=libraries /opt/libraries /opt/libraries
COPY --from=package /opt/pgherd /opt/pgherd
