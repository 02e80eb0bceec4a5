# The strict OAuth2 provider of the tests (examples/strict-provider.rs) as an image, for docker-compose.yml. It is no
# provider for anything of value: everything is in memory, and its one application has a secret that everybody knows.

ARG BUILD_BASE=rust:1.95-slim-bookworm
ARG SAMPLE_BASE=debian:bookworm-slim

FROM ${BUILD_BASE} AS build
WORKDIR /src
COPY deploy/compose/provider.toml Cargo.toml
# Not --locked: the lock is the whole project's, and cargo takes out of it what is not needed here.
COPY Cargo.lock ./
COPY examples/strict-provider.rs examples/
COPY examples/strict-provider examples/strict-provider
RUN cargo build && install -D target/debug/strict-provider /image/usr/local/bin/strict-provider

# With a shell, for compose's health check.
FROM ${SAMPLE_BASE}
COPY --from=build /image/ /
# A volume that is mounted here takes its owner from this folder.
RUN install -d -o 65532 -g 65532 /samples
USER 65532:65532
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/strict-provider"]
CMD ["--listen", "0.0.0.0:8090"]
