# syntax=docker/dockerfile:1
# The worker beside ffmpeg, from the same Debian whose ffmpeg our numbers were measured with.
#   docker buildx build --platform linux/amd64,linux/arm64 -f docker/worker.Dockerfile -t millrace-worker --sbom=true .
#
# Dependencies are built in a layer of their own (cargo chef), which stays as long as Cargo.lock does. The program holds
# the list of its crates (cargo auditable), so that scanners need no source.

ARG RUST_IMAGE=docker.io/library/rust:1.95-bookworm
ARG RUNTIME_IMAGE=docker.io/library/debian:bookworm-slim

FROM ${RUST_IMAGE} AS chef
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake pkg-config \
    && rm -rf /var/lib/apt/lists/*
RUN cargo install --locked cargo-chef@0.1.78 cargo-auditable@0.7.7
WORKDIR /src

FROM chef AS plan
COPY . .
RUN cargo chef prepare --recipe-path /recipe.json

FROM chef AS build
COPY --from=plan /recipe.json recipe.json
RUN cargo chef cook --release --locked --package millrace-worker --recipe-path recipe.json
COPY . .
RUN cargo auditable build --release --locked --package millrace-worker --bin millrace-worker \
    && strip --strip-debug target/release/millrace-worker

FROM ${RUNTIME_IMAGE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates ffmpeg \
    # A third of that is for drawing by GPUs, which ffmpeg loads only when it is asked to, and it never is.
    && rm -rf /usr/lib/*-linux-gnu/dri /usr/lib/*-linux-gnu/mfx /usr/lib/*-linux-gnu/libLLVM* /usr/lib/*-linux-gnu/libz3.so* \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* \
    && ffmpeg -v error -f lavfi -i testsrc2=d=0.1 -c:v libx264 -f null - \
    && install -d -o 65532 -g 65532 /scratch /data
ENV MILLRACE_SCRATCH=/scratch
COPY --from=build /src/target/release/millrace-worker /usr/local/bin/millrace-worker
# The number, so that Kubernetes can see that it is not root.
USER 65532:65532
STOPSIGNAL SIGTERM
EXPOSE 9000
ENTRYPOINT ["/usr/local/bin/millrace-worker"]
CMD ["run"]
# Last, because they differ in each build.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="millrace-worker" \
      org.opencontainers.image.description="Turns videos into adaptive streams with ffmpeg" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
