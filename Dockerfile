# One image for every service and for r2f itself; compose.yaml names the command of each.
#
# On x86-64 PyPI's torch brings CUDA along. For the CPU build, give PyTorch's index of CPU wheels:
#   PIP_EXTRA_INDEX_URL=... docker compose build
FROM python:3.11-slim-bookworm AS packages
ARG PIP_EXTRA_INDEX_URL
RUN python -m venv /opt/r2f
ENV PATH=/opt/r2f/bin:$PATH
WORKDIR /src
# The packages first: they change seldom and take long.
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n'); \
print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['monitor'], sep='\n')" \
      > requirements.txt \
 && pip install --no-cache-dir --disable-pip-version-check -r requirements.txt \
 && cd /opt/r2f/lib/python3.11/site-packages \
 && rm -rf torch/include torch/test torch/bin/protoc* \
 && find . -type d -name tests -prune -exec rm -rf {} +
COPY . .
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps .

FROM python:3.11-slim-bookworm
# One user for all: a reader of a tensor in shared memory must be the sender's user. What volumes are mounted on is its own.
RUN useradd --system --uid 10001 --create-home --home-dir /home/r2f r2f \
 && install -d -o r2f -g r2f /runs /run/r2f /var/cache/numba /kernels \
 && install -d -m 0700 -o r2f -g r2f /identities /identities/authority /identities/edge-0 /identities/server /identities/watch \
    /identities/edge-0-broker /identities/server-broker /signing /signing/server /signing/device
COPY --from=packages /opt/r2f /opt/r2f
ENV PATH=/opt/r2f/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NUMBA_CACHE_DIR=/var/cache/numba \
    MPLCONFIGDIR=/tmp/matplotlib
USER r2f
WORKDIR /home/r2f
# Leaves the kernels compiled for this machine; on another one, each container compiles them when it first needs them.
RUN python -m r2f.warm && r2f doctor && cp -a /var/cache/numba/. /kernels/
# A service is healthy while its retained state on its broker says so.
COPY docker/healthy.py /usr/local/bin/healthy
HEALTHCHECK --interval=5s --timeout=6s --start-period=60s --retries=3 CMD ["python", "/usr/local/bin/healthy"]
CMD ["r2f", "--help"]
