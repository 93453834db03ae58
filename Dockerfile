# syntax=docker/dockerfile:1
# Both programs, one image each:
#
#   docker build --target edge     -t wirepost-edge .
#   docker build --target operator -t wirepost-operator .
#
# For another architecture: --platform linux/arm64 (or linux/amd64,linux/arm64 with buildx). The compiler runs on the builder's architecture
# and cross-compiles.
#
# The same sources give the same binaries: versions come from Cargo.lock, the compiler from RUST; paths and times are not part of them. Their
# C code is compiled by Debian's current gcc. To pin base images, pass RUST_IMAGE and BASE_IMAGE with digests: docs/platform.md.

ARG RUST=1.95.0
ARG RUST_IMAGE=docker.io/library/rust:${RUST}-slim-bookworm
# glibc, libgcc and the public CA certificates; no shell, no package manager; user 65532.
ARG BASE_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM --platform=$BUILDPLATFORM ${RUST_IMAGE} AS build
ARG BUILDARCH
ARG TARGETARCH
WORKDIR /src
# A C compiler for the target, since aws-lc and mimalloc are C.
RUN <<'SH'
set -eu
case "$TARGETARCH" in
  "$BUILDARCH") compiler="gcc g++ libc6-dev" ;;
  amd64) compiler="gcc-x86-64-linux-gnu g++-x86-64-linux-gnu libc6-dev-amd64-cross" ;;
  arm64) compiler="gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6-dev-arm64-cross" ;;
  *) echo "unknown architecture: $TARGETARCH" >&2; exit 1 ;;
esac
apt-get update
apt-get install -y --no-install-recommends $compiler
rm -rf /var/lib/apt/lists/*
SH

# What .dockerignore lets through: without rust-toolchain.toml, which asks for tools that no image needs. A test keeps RUST the same as it.
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/target,id=wirepost-$TARGETARCH <<'SH'
set -eu
case "$TARGETARCH" in amd64) cpu=x86_64 ;; arm64) cpu=aarch64 ;; *) echo "unknown architecture: $TARGETARCH" >&2; exit 1 ;; esac
target=$cpu-unknown-linux-gnu
rustup target add "$target"
name=$(echo "$target" | tr a-z- A-Z_)
export "CARGO_TARGET_${name}_LINKER=$cpu-linux-gnu-gcc"
export "CC_$(echo "$target" | tr - _)=$cpu-linux-gnu-gcc" "CXX_$(echo "$target" | tr - _)=$cpu-linux-gnu-g++"
export CARGO_TARGET_DIR=/target SOURCE_DATE_EPOCH=0
export RUSTFLAGS="--remap-path-prefix=/src=wirepost --remap-path-prefix=$CARGO_HOME=cargo"
cargo build --release --locked --target "$target" -p wirepost-edge -p wirepost-operator --bins
install -D -t /out "/target/$target/release/wirepost-edge" "/target/$target/release/wirepost-operator"
SH

FROM ${BASE_IMAGE} AS edge
COPY --from=build /out/wirepost-edge /usr/local/bin/wirepost-edge
# By number: Kubernetes can then verify that it is not root.
USER 65532:65532
EXPOSE 8080 9090
ENTRYPOINT ["/usr/local/bin/wirepost-edge"]

FROM ${BASE_IMAGE} AS operator
COPY --from=build /out/wirepost-operator /usr/local/bin/wirepost-operator
USER 65532:65532
EXPOSE 9090
ENTRYPOINT ["/usr/local/bin/wirepost-operator"]
