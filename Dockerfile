# syntax=docker/dockerfile:1
# The server over HTTP, which needs a bearer token since it is reached from outside the container:
#   docker build -t pathsynth .
#   docker run --rm -p 127.0.0.1:8765:8765 -e PATHSYNTH_TOKEN=... -v pathsynth:/data pathsynth
# The server over stdio:
#   docker run --rm -i -v pathsynth:/data pathsynth --transport stdio

FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/pathsynth
ENV PATH=/opt/pathsynth/bin:$PATH
# The CPU build of PyTorch, which PyPI does not carry for Linux, in a layer that changes of the code leave alone.
RUN pip install --index-url https://download.pytorch.org/whl/cpu "torch>=2.6,<3" "torchvision>=0.21,<1"
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY pathsynth pathsynth
COPY server server
COPY tools tools
COPY weights weights
RUN pip install .

FROM python:3.12-slim
LABEL io.modelcontextprotocol.server.name="io.github.pathsynth/pathsynth" \
      org.opencontainers.image.title="PathSynth" \
      org.opencontainers.image.licenses="MIT"
RUN useradd --system --uid 10001 --no-create-home --home-dir /data pathsynth \
    && install --directory --owner=pathsynth --group=pathsynth /data
COPY --from=build /opt/pathsynth /opt/pathsynth
ENV PATH=/opt/pathsynth/bin:$PATH \
    PATHSYNTH_HOME=/data \
    HOME=/data \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8765
# Answers without a token. A container that serves stdio has no port to ask, and counts as unhealthy.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8765/healthz', timeout=4)"]
ENTRYPOINT ["pathsynth-mcp"]
CMD ["--transport", "http", "--host", "0.0.0.0", "--port", "8765"]
