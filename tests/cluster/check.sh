# shellcheck shell=bash
# Whether this machine can hold a cluster, sourced by `cluster`: each thing is tried as the node will do it, and leaves nothing
# but the packages that a cluster needs.

memory_needed=3000000 # KB

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

lacking() ( # a line for each thing
  [[ $EUID == 0 ]] || { echo "that needs root"; exit; }
  mkdir -p "$state"
  # A cluster that is started meanwhile would use the very mount points that are made and removed here.
  exec 9>"$state/lock"
  flock --wait 30 9 || { echo "a command on a cluster is under way, and has not ended for half a minute"; exit; }
  cgroup=wirepost-check
  dir=$(mktemp -d "$state/check.XXXXXX") || { echo "$state can't be written"; exit; }
  trap leave_nothing EXIT
  said=$(running; lacking_of_machine)
  # No packages for a machine that can't hold one anyway.
  [[ -n $said ]] || said=$(lacking_packages)
  [[ -n $said ]] || said=$(lacking_of_node)
  [[ -z $said ]] || echo "$said"
)
leave_nothing() {
  remove_cgroup || true
  remove_mount_points
  rm -rf --one-file-system "$dir"
}

lacking_of_machine() {
  attempt "it may not make namespaces" in_namespaces true
  mkdir "$dir"/{lower,upper,work,merged}
  attempt "$state can't lie under an overlay" in_namespaces \
    mount -t overlay overlay -o "lowerdir=$dir/lower,upperdir=$dir/upper,workdir=$dir/work" "$dir/merged"
  can_control || echo "it may not make control groups for cpu, memory and pids in /sys/fs/cgroup"
  : 2>/dev/null </dev/kmsg || echo "the kubelet needs to read /dev/kmsg"
  lacking_room
  lacking_memory
}
lacking_packages() {
  missing_packages >/dev/null || attempt "it lacks $(missing_packages)" install_packages
}
lacking_of_node() {
  make_mount_points
  attempt "a node can't be furnished" in_namespaces "$cluster/node-init" "$dir" --try
  attempt "it may not make network links" in_namespaces ip link add wirepost-check type veth peer name eth9
  attempt "its packet filter lacks what kube-proxy needs" in_namespaces iptables-restore --noflush <<'END'
*filter
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -m conntrack --ctstate NEW -m comment --comment service -j REJECT
COMMIT
*nat
:SERVICES - [0:0]
:ENDPOINT - [0:0]
:LEAVING - [0:0]
-A PREROUTING -m comment --comment service -j SERVICES
-A POSTROUTING -j LEAVING
-A SERVICES -p tcp -m addrtype --dst-type LOCAL -m statistic --mode random --probability 0.5 -j ENDPOINT
-A ENDPOINT -p tcp -j DNAT --to-destination 127.0.0.2:1
-A LEAVING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A LEAVING -j MARK --xor-mark 0x4000
-A LEAVING -j MASQUERADE
COMMIT
END
}

in_namespaces() { unshare --mount --propagation private --pid --net --fork -- "$@"; }
attempt() { # attempt SENTENCE COMMAND...: where it fails, the sentence with the end of what it said
  local sentence=$1 said
  shift
  said=$("$@" 2>&1) && return
  said=${said##*$'\n'}
  echo "$sentence${said:+ ($said)}"
}

can_control() {
  local place controller needed=(cpu memory pids)
  make_cgroup 2>/dev/null
  if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
    # The kubelet wants each of its controllers that the machine has.
    for controller in "${needed[@]}" $(available_controllers); do
      grep -qw "$controller" "/sys/fs/cgroup/$cgroup/cgroup.controllers" 2>/dev/null || return 1
    done
  else
    for place in $(cgroup_places); do [[ -d $place ]] || return 1; done
    for controller in "${needed[@]}" cpuacct cpuset; do [[ -d /sys/fs/cgroup/$controller/$cgroup ]] || return 1; done
  fi
}

# Also called before a start: etcd and images fail in stranger ways.
lacking_room() { # a line for each file system that has too little left
  local missing place free
  local -A claims=()
  claim "$state" 1500000
  # Kubernetes' programs are built once; the sources and objects of all of them are 5 GB in caches of Go's.
  read -ra missing < <("$services_dir/kubernetes-build" --missing "${programs[@]}" metrics-server)
  if ((${#missing[@]})); then
    claim "$cache" 1000000
    claim "$(go_folder GOMODCACHE "${GOPATH:-$HOME/go}/pkg/mod")" 1500000
    claim "$(go_folder GOCACHE "${XDG_CACHE_HOME:-$HOME/.cache}/go-build")" $((300000 * ${#missing[@]}))
  fi
  for place in "${!claims[@]}"; do
    free=$(df --output=avail -k "$place" | tail -n 1)
    ((free > claims[$place])) || echo "it takes $((claims[$place] / 1000)) MB, $place has $((free / 1000)) MB left"
  done
}
claim() { # claim FOLDER KB: of the file system where it is, or will be
  local folder=$1 mount
  until [[ -d $folder ]]; do folder=$(dirname "$folder"); done
  mount=$(df --output=target "$folder" | tail -n 1)
  claims[$mount]=$((${claims[$mount]:-0} + $2))
}
go_folder() { # go_folder VARIABLE DEFAULT
  local folder
  folder=$(GOTOOLCHAIN=local go env "$1" 2>/dev/null) || folder=${!1:-}
  echo "${folder:-$2}"
}

lacking_memory() {
  local free limit
  free=$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)
  ((free > memory_needed)) || echo "it takes $((memory_needed / 1000)) MB of memory, $((free / 1000)) MB are free"
  # Of a container that is one, in both versions of control groups.
  limit=$(cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null) || true
  [[ ! $limit =~ ^[0-9]+$ ]] || ((limit / 1000 > memory_needed)) ||
    echo "it takes $((memory_needed / 1000)) MB of memory, and may use $((limit / 1000000)) MB"
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
