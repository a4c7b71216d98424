# The images of kernelpool: `net`, one image a runtime (`python`), `gateway`. `kernelpool images build` builds them with the
# classic builder or BuildKit, and so does `docker build --target python .`. Stages that are needed least come last: the
# classic builder makes all that stand before its target.
#
# BASE: a Debian or the like with python3 (3.11 to 3.13) and ensurepip or pip, in /usr or /usr/local.
ARG BASE=python:3.13-slim-bookworm
ARG RUNTIME=python
ARG VERSION=unknown
ARG SOURCE_DATE_EPOCH=315619200

# Folders that COPY makes have the time of the build.
FROM ${BASE} AS holder
ARG SOURCE_DATE_EPOCH
COPY kernelpool/__init__.py kernelpool/backends/docker/holder*.py /net/opt/holder/
RUN find /net -exec touch --no-dereference --date=@${SOURCE_DATE_EPOCH} {} +

# Holds a network namespace for others. Nothing but Python and one program, and nothing secret.
FROM ${BASE} AS net
ARG VERSION
COPY --from=holder /net/ /
LABEL org.opencontainers.image.title="kernelpool net" \
      org.opencontainers.image.description="Holds the network namespace of a sandbox" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
HEALTHCHECK NONE
USER 65532:65532
CMD ["python3", "-I", "/opt/holder/holder.py"]

# What every other stage is made with: the code that also builds the trees of bubblewrap.
FROM ${BASE} AS packages
ARG RUNTIME
ARG SOURCE_DATE_EPOCH
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG NPM_CONFIG_REGISTRY
ENV PYTHONPATH=/src PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
COPY kernelpool/__init__.py kernelpool/errors.py kernelpool/models.py kernelpool/runtimes.py kernelpool/
COPY kernelpool/backends/__init__.py kernelpool/backends/base.py kernelpool/backends/container.py kernelpool/backends/
COPY kernelpool/backends/tree kernelpool/backends/tree/
COPY kernelpool/egress/__init__.py kernelpool/egress/policy.py kernelpool/egress/
COPY kernels/${RUNTIME}/runtime.toml kernels/${RUNTIME}/*.txt kernels/${RUNTIME}/package*.json kernels/${RUNTIME}/
RUN python3 -m kernelpool.backends.tree.image packages ${RUNTIME} /packages

FROM packages AS program
ARG RUNTIME
ARG SOURCE_DATE_EPOCH
COPY kernelpool/children.py kernelpool/wire.py kernelpool/
COPY kernelpool/protocol kernelpool/protocol/
COPY kernelpool/agent kernelpool/agent/
COPY kernels/${RUNTIME} kernels/${RUNTIME}/
RUN python3 -m kernelpool.backends.tree.image program ${RUNTIME} /program

# A runtime: one stage for all, RUNTIME says which.
FROM ${BASE} AS runtime
ARG RUNTIME
ARG VERSION
COPY --from=packages /packages/root/ /
COPY --from=program /program/root/ /
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin HOME=/mnt/data LANG=C.UTF-8
LABEL org.opencontainers.image.title="kernelpool ${RUNTIME}" \
      org.opencontainers.image.description="What one session of the ${RUNTIME} runtime sees" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      io.kernelpool.runtime="${RUNTIME}"
# The gateway watches the agent, over a socket that only it may open.
HEALTHCHECK NONE
USER 65532:65532
WORKDIR /mnt/data
CMD ["/opt/venv/bin/python", "-I", "/opt/kernelpool", "--help"]

FROM runtime AS python

FROM runtime AS shell

FROM ${BASE} AS gateway-packages
ARG SOURCE_DATE_EPOCH
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PYTHONPATH=/src PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE Dockerfile constraints.txt ./
COPY kernelpool kernelpool/
COPY kernels kernels/
RUN python3 -m kernelpool.backends.tree.image gateway kernelpool /gateway

FROM ${BASE} AS gateway
ARG VERSION
COPY --from=gateway-packages /gateway/root/ /
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 \
    KERNELPOOL_HOST=0.0.0.0 KERNELPOOL_STATE_DIR=/var/lib/kernelpool
LABEL org.opencontainers.image.title="kernelpool" \
      org.opencontainers.image.description="Self-hosted dynamic sessions: the gateway" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
EXPOSE 8080
# The first start makes images of runtimes, which takes minutes.
HEALTHCHECK --interval=15s --timeout=5s --start-period=15m --retries=3 \
    CMD ["/opt/venv/bin/python", "-I", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
USER 10001:10001
WORKDIR /var/lib/kernelpool
ENTRYPOINT ["/opt/venv/bin/kernelpool"]
CMD ["serve"]
