# shellcheck shell=bash
# Whether this machine can hold a cluster, sourced by `cluster`: each thing is tried as the node will do it, and leaves nothing.

# check: a sentence; its status is the answer.
check() {
  local lacking
  mapfile -t lacking < <(lacking)
  ((${#lacking[@]})) || { echo "this machine can hold a cluster"; return; }
  printf "this machine can't hold a cluster: %s" "${lacking[0]}"
  ((${#lacking[@]} == 1)) || printf '; %s' "${lacking[@]:1}"
  echo ". Another cluster does as well: name it with WIREPOST_TEST_CLUSTER_KUBECONFIG"
  return 1
}

lacking() { # a line for each thing
  local free need=1500000
  [[ $EUID == 0 ]] || { echo "that needs root"; return; }
  mkdir -p "$state"
  in_namespaces true || echo "it may not make namespaces (unshare --mount --pid --net fails)"
  ! command -v ip >/dev/null || in_namespaces ip link add wirepost-check type veth peer name eth9 ||
    echo "it may not make network links (ip link add … type veth fails)"
  ! command -v iptables >/dev/null || in_namespaces iptables --table nat --list --numeric ||
    echo "it has no packet filter (iptables --table nat fails)"
  can_overlay || echo "$state can't lie under an overlay (mount -t overlay fails)"
  (cgroup=wirepost-check && can_control) || echo "it may not make control groups for cpu, memory and pids in /sys/fs/cgroup"
  missing_packages >/dev/null || command -v apt-get >/dev/null || echo "it lacks $(missing_packages), and there is no apt-get"
  # Kubernetes' programs are built once, in caches of Go's.
  compgen -G "$cache/kube/*/bin/kubelet" >/dev/null || need=7500000
  free=$(df --output=avail -k "$state" | tail -n 1)
  ((free > need)) || echo "it takes $((need / 1000)) MB, $state has $((free / 1000)) MB left"
  running
}

in_namespaces() { unshare --mount --propagation private --pid --net --fork -- "$@" >/dev/null 2>&1; }

can_overlay() {
  local place status=0
  place=$(mktemp -d "$state/check.XXXXXX")
  mkdir "$place"/{lower,upper,work,merged}
  in_namespaces mount -t overlay overlay -o "lowerdir=$place/lower,upperdir=$place/upper,workdir=$place/work" "$place/merged" || status=1
  rm -rf --one-file-system "$place"
  return "$status"
}

can_control() {
  local place controller status=0
  make_cgroup 2>/dev/null
  for place in $(cgroup_places); do
    [[ -d $place ]] || status=1
    # The second version alone: one place for all controllers.
    [[ -e /sys/fs/cgroup/cgroup.controllers ]] || continue
    for controller in cpu memory pids; do grep -qw "$controller" "$place/cgroup.controllers" || status=1; done
  done
  remove_cgroup
  return "$status"
}

# One that a killed test run left counts for nothing: the next run removes it.
running() {
  local dir
  for dir in "$state"/*/; do
    dir=${dir%/}
    pid_of init >/dev/null || continue
    [[ -e $dir/owner.pid ]] && ! pid_of owner >/dev/null && return
    echo "cluster '${dir##*/}' runs, and it holds one ('tests/cluster/cluster stop ${dir##*/}' ends it)"
    return
  done
  ! ip link show "$link" >/dev/null 2>&1 || echo "another's cluster runs, as the link $link shows, and it holds one"
}
