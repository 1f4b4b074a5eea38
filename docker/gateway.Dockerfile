# syntax=docker/dockerfile:1
# The gateway, and nothing else in its image but the C library and certificate authorities.
#   docker buildx build --platform linux/amd64,linux/arm64 -f docker/gateway.Dockerfile -t millrace-gateway --sbom=true .
#
# Dependencies are built in a layer of their own (cargo chef), which stays as long as Cargo.lock does. The program holds
# the list of its crates (cargo auditable), so that scanners need no source.

ARG RUST_IMAGE=docker.io/library/rust:1.95-bookworm
ARG NODE_IMAGE=docker.io/library/node:22-bookworm-slim
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

# The page's player, by the lock's hash.
FROM ${NODE_IMAGE} AS player
WORKDIR /web
COPY gateway/web/package.json gateway/web/package-lock.json gateway/web/.npmrc ./
RUN npm ci --ignore-scripts

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
RUN cargo chef cook --release --locked --package millrace-gateway --recipe-path recipe.json
COPY . .
COPY --from=player /web/node_modules gateway/web/node_modules
RUN cargo auditable build --release --locked --package millrace-gateway --bin millrace-gateway \
    && strip --strip-debug target/release/millrace-gateway

FROM ${RUNTIME_IMAGE}
COPY --from=build /src/target/release/millrace-gateway /usr/local/bin/millrace-gateway
# The number, so that Kubernetes can see that it is not root.
USER 65532:65532
STOPSIGNAL SIGTERM
EXPOSE 8080 8443
ENTRYPOINT ["/usr/local/bin/millrace-gateway"]
CMD ["run", "--config", "/etc/millrace/routing/routing.toml"]
# Last, because they differ in each build.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="millrace-gateway" \
      org.opencontainers.image.description="One endpoint in front of video-transcode workers in several clouds" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
