# The daemon as an image: one static program, the certificates that it trusts, and nothing else. `make image`
# builds it and holds it to its size.
#
# Both bases are arguments: name a mirror, a digest, or a base of your own. The runtime base may be anything, `scratch`
# included: nothing of it is needed. No BuildKit feature is used, so every engine builds it.

ARG BUILD_BASE=rust:1.95-slim-bookworm
ARG RUNTIME_BASE=gcr.io/distroless/static-debian12:nonroot

FROM ${BUILD_BASE} AS build
WORKDIR /src
# The allocator is built by make.
RUN command -v make >/dev/null || { apt-get update && apt-get install --yes --no-install-recommends make; }
# glibc, linked in: its resolver, on any base. It resolves by `files` and `dns`, both of which are part of
# it since 2.34; a base whose nsswitch.conf asks for more modules than these for `hosts` is none for this image.
# --target keeps this from procedural macros, which cannot be static.
ENV RUSTFLAGS="-C target-feature=+crt-static"

# The dependencies, over empty sources: this layer is built again when the manifests change, and not when a source does.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src examples benches \
    && touch src/lib.rs \
    && echo 'fn main() {}' >src/main.rs \
    && cp src/main.rs examples/demo.rs \
    && cp src/main.rs examples/store-writer.rs \
    && cp src/main.rs benches/engine.rs \
    && cargo build --locked --release --no-default-features --features jemalloc --bin perennial --target host-tuple

# cargo judges by times: the sources may be older than what was built of the empty ones.
COPY src src
RUN touch src/lib.rs src/main.rs \
    && cargo build --locked --release --no-default-features --features jemalloc --bin perennial --target host-tuple \
    && install -D target/*/release/perennial /image/usr/local/bin/perennial \
    && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && install -d /image/etc/perennial
COPY LICENSE-APACHE LICENSE-MIT config/perennial.sample.toml /image/usr/share/doc/perennial/

FROM ${RUNTIME_BASE}
COPY --from=build /image/ /
# Where the configuration is mounted, or copied to: perennial.toml. Without one, the environment has to say everything.
ENV PERENNIAL_CONFIG=/etc/perennial

ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="perennial" \
    org.opencontainers.image.description="Keeps third-party OAuth2 tokens fresh for a fleet of API clients, over one DynamoDB table" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.source="${SOURCE}" \
    org.opencontainers.image.licenses="MIT OR Apache-2.0"

# By number, so that an orchestrator can see that it is not root. Nothing is written outside a mounted spill.
USER 65532:65532
# It drains on SIGTERM: give it 120 s (docker stop --time 120, stopTimeout on ECS).
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/usr/local/bin/perennial", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/perennial"]
CMD ["run"]
