# shellcheck shell=bash
# Images without a registry, sourced by `cluster`: archives of one layer, imported into containerd. Pods take them with
# imagePullPolicy Never (or IfNotPresent).

# load_image NAME[,NAME]... OPTION...: what image.py takes.
load_image() {
  local names=$1 archive one tags=()
  shift
  archive=$(mktemp "$dir/image.XXXXXX")
  for one in ${names//,/ }; do tags+=(--tag "$one"); done
  if ! { "$cluster/image.py" "$archive" "${tags[@]}" "$@" && ctr images import --local --discard-unpacked-layers "$archive"; } >"$archive.log" 2>&1; then
    cat "$archive.log" >&2
    rm -f "$archive" "$archive.log"
    die "no image $names"
  fi
  rm -f "$archive" "$archive.log"
}

load_own_images() { # what the node itself needs
  load_image localhost/pause:1 --file "$dir/bin/pause=/pause" --entry /pause
  load_image localhost/coredns:1 --file "$bin/coredns=/coredns" --entry /coredns
}

# The very binaries that the tests run, with the shared libraries that they load and one CA certificate: a debug build that
# reads those of a whole machine starts later. Two tags, for what goes from one to the other.
load_wirepost() {
  local program target=${CARGO_TARGET_DIR:-$cache/target}/${WIREPOST_TEST_PROFILE:-debug}
  for program in edge operator; do
    [[ -x $target/wirepost-$program ]] || die "$target/wirepost-$program is not there: build it first (make cluster does)"
    load_image "localhost/wirepost-$program:test,localhost/wirepost-$program:next" --file "$target/wirepost-$program" \
      --file "$cluster/../../testing/ca.pem=/etc/ssl/certs/ca-certificates.crt" --entry "/usr/local/bin/wirepost-$program" --user 65532:65532
  done
}

load_metrics_server() {
  local bin
  bin=$("$services_dir/kubernetes-build" metrics-server 9>&-) || die "no metrics-server"
  load_image localhost/metrics-server:1 --file "$bin/metrics-server=/metrics-server" --entry /metrics-server
}

# RabbitMQ as Debian packs it, with user, folders and plugins of the official image.
load_rabbitmq() {
  local root owner
  root=$("$services_dir/debian-root" sid 9>&-) || root=$("$services_dir/debian-root" trixie 9>&-) || die "no RabbitMQ 4"
  owner=$(awk -F: '$1 == "rabbitmq" { print $3 ":" $4 }' "$root/etc/passwd")
  load_image localhost/rabbitmq:4 --tree "$root" --owner "$owner=999:999" --user 999:999 \
    --without proc --without sys --without dev --without run --without tmp --without srv --without var/cache --without var/log \
    --without usr/share/doc --without usr/share/man --without usr/share/locale --without var/lib/apt --without var/lib/rabbitmq \
    --entry /usr/lib/rabbitmq/bin/rabbitmq-server --env PATH=/usr/lib/rabbitmq/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    --env HOME=/var/lib/rabbitmq --env LANG=C.UTF-8 --env RABBITMQ_LOGS=-
}
