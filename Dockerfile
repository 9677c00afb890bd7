# The image is the static binary, CA certificates and two empty folders, for the agent's sockets and for
# its store, that belong to the user it runs as (a new volume mounted there takes over their owner).
#
#   docker build .                       builds the binary in the builder image
#   scripts/image.sh BINARY TAG          packs a binary that is built already (`make image`)
#
# A registry's mirror or a pinned digest of the builder goes in by --build-arg BUILDER=...
ARG BUILDER=rust:1.95-slim-bookworm

# What the image is, whichever way the binary comes into it.
FROM scratch AS base
ENV PATH=/usr/bin \
    WASMFERRY_CONFIG=/etc/wasmferry/config.yaml
USER 1337:1337
ENTRYPOINT ["/usr/bin/wasmferry"]
CMD ["run"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/usr/bin/wasmferry", "health"]

# From a folder that scripts/rootfs.sh has made: stop here with --target=packed.
FROM base AS packed
ARG ROOTFS=target/rootfs
COPY --chown=0:0 ${ROOTFS}/system/ /
COPY --chown=1337:1337 ${ROOTFS}/state/ /run/wasmferry/
COPY --chown=1337:1337 ${ROOTFS}/state/ /var/lib/wasmferry/

FROM ${BUILDER} AS build
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates make musl-tools
WORKDIR /src
COPY . .
RUN make static && scripts/rootfs.sh "target/$(uname -m)-unknown-linux-musl/release/wasmferry" /rootfs

FROM base
COPY --chown=0:0 --from=build /rootfs/system/ /
COPY --chown=1337:1337 --from=build /rootfs/state/ /run/wasmferry/
COPY --chown=1337:1337 --from=build /rootfs/state/ /var/lib/wasmferry/
