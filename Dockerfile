# The image of every part of Ashlar: one binary, a shell, and what a client needs to mount.
#
# With internet:     docker-compose up           builds the stage `full`, from the sources.
# Without:           docker/offline.sh           builds the stage `static` from what this host has,
#                    docker-compose up           and takes that image.
#
# `static` stands first: an engine without BuildKit builds every stage before the wanted one, and the
# others begin with images that an offline host cannot pull.
ARG RUNTIME_IMAGE=debian:bookworm-slim
ARG BUILD_IMAGE=rust:1.95-bookworm

# dist/ is a small root file system, made by docker/offline.sh.
FROM scratch AS static
COPY dist/ /
ENTRYPOINT ["/bin/sh", "/usr/share/ashlar/entry.sh"]

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --release

FROM ${RUNTIME_IMAGE} AS full
RUN apt-get update \
  && apt-get install -y --no-install-recommends e2fsprogs mount fuse3 \
  && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/ashlar /usr/bin/ashlar
COPY docker/entry.sh docker/client.sh /usr/share/ashlar/
ENTRYPOINT ["/bin/sh", "/usr/share/ashlar/entry.sh"]
