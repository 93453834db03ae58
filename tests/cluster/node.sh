# shellcheck shell=bash
# The node, sourced by `cluster`: namespaces that hold all of it, the link to the machine, Kubernetes' programs.
# They set $dir, $name and $bin (Kubernetes' programs).

# From the range that is reserved for tests of networks. Not those of tests/services/kubernetes, which may run beside.
machine_address=198.18.254.1 address=198.18.254.2
pods=198.18.64.0/24 services=198.19.64.0/24 kubernetes_address=198.19.64.1 dns_address=198.19.64.10
link=wirepost0 # its name is also what tells another cluster's presence

# ---- namespaces ----

in_node() { nsenter --target "$(pid_of init)" --mount --pid --net -- "$@"; }

# What lives on must hold nothing of the caller's: such as the lock that somebody runs us under.
let_go() {
  local fd
  for fd in /proc/self/fd/*; do
    fd=${fd##*/}
    ((fd < 3)) || exec {fd}>&-
  done
}
# spawn PROGRAM COMMAND...: in the node; $dir/PROGRAM.pid gets the pid that it has outside. Its parent becomes the node's first
# process: one outside would have to live on to reap it, or the node could not end.
spawn() {
  local program=$1
  shift
  rm -f "$dir/$program.started"
  # shellcheck disable=SC2016
  (let_go; exec setsid nsenter --target "$(pid_of init)" --mount --pid --net -- bash -c '
    { read -r pid _ <"$1/proc/self/stat"; echo "$pid" >"$1/$2.started"; shift 2; exec "$@"; } &' _ "$dir" "$program" "$@" \
    >>"$dir/log/$program.log" 2>&1 </dev/null)
  eventually 10 test -s "$dir/$program.started" || die "$program was not started: $(tail -n 3 "$dir/log/$program.log")"
  remember "$program" "$(cat "$dir/$program.started")"
}
eventually() { # eventually SECONDS CONDITION...
  local end=$((SECONDS + $1))
  shift
  until "$@"; do ((SECONDS < end)) || return 1; sleep 0.1; done
}

begin_node() {
  pid_of init >/dev/null && return
  ! ip link show "$link" >/dev/null 2>&1 || die "another such cluster runs on this machine: the link $link is there, and not this one's"
  mkdir -p "$dir"/{bin,log,volumes}
  [[ -x $dir/bin/pause ]] || cc -Os -static -o "$dir/bin/pause" "$cluster/pause.c"
  make_mount_points
  make_cgroup
  rm -f "$dir/init"
  (let_go; exec setsid unshare --mount --propagation private --pid --net --fork -- "$cluster/node-init" "$dir" >>"$dir/log/init.log" 2>&1 </dev/null) &
  disown
  eventually 10 test -s "$dir/init" || die "no namespaces for the node: $(tail -n 3 "$dir/log/init.log")"
  remember init "$(cat "$dir/init")"
  ip link add "$link" type veth peer name eth0 netns "$(pid_of init)"
  ip address add "$machine_address/30" dev "$link"
  ip link set "$link" up
  in_node ip address add "$address/30" dev eth0
  in_node ip link set eth0 up
  in_node ip route add default via "$machine_address"
  # Pods and Services can be reached from the machine.
  ip route add "$pods" via "$address"
  ip route add "$services" via "$address"
}

# What node-init mounts on: those of the machine that are not there are made, and remembered.
make_mount_points() {
  local place
  mkdir -p "$dir"/{proc,tunables,kubelet}
  for place in /var/lib/cni /var/lib/kubelet; do [[ -d $place ]] || { mkdir "$place"; echo "$place" >>"$dir/made"; }; done
}
remove_mount_points() {
  local place
  [[ -e $dir/made ]] || return 0
  while read -r place; do rmdir "$place" 2>/dev/null || true; done <"$dir/made"
}

# Ends everything at once: the kernel kills all processes of a process namespace with its first one, those of pods too; mounts,
# network and packet filter go with the last one.
end_node() {
  local pid
  if pid=$(pid_of init); then
    kill -KILL "$pid"
    wait_gone "$pid" 30 || die "the node's first process (pid $pid) outlives a kill -9"
    ip link delete "$link" 2>/dev/null || true
  fi
  rm -f "$dir"/{init,etcd,apiserver,controllers,scheduler,containerd,kubelet,proxy}.pid
  eventually 10 remove_cgroup || say "left behind: the control groups $cgroup"
}

# ---- the control group of all pods ----

cgroup=wirepost-node
cgroup_places() {
  if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
    echo "/sys/fs/cgroup/$cgroup"
  else
    local procs
    for procs in /sys/fs/cgroup/*/cgroup.procs; do
      [[ -e $procs ]] || continue # an empty folder is there
      echo "${procs%/*}/$cgroup"
    done
  fi
}
make_cgroup() {
  local place controller
  for place in $(cgroup_places); do mkdir -p "$place"; done
  [[ -e /sys/fs/cgroup/cgroup.controllers ]] || return 0
  for controller in $(available_controllers); do
    for place in /sys/fs/cgroup "/sys/fs/cgroup/$cgroup"; do
      ! grep -qw "$controller" "$place/cgroup.subtree_control" || continue
      echo "+$controller" >"$place/cgroup.subtree_control" || continue
      [[ $place != /sys/fs/cgroup ]] || echo "$controller" >>"$dir/controllers" # the machine's own, for remove_cgroup
    done
  done 2>/dev/null
}
available_controllers() { # of those that the kubelet uses
  local controller
  for controller in cpu cpuset memory pids hugetlb; do
    ! grep -qw "$controller" /sys/fs/cgroup/cgroup.controllers || echo "$controller"
  done
}
remove_cgroup() {
  local place controller
  for place in $(cgroup_places); do
    [[ ! -d $place ]] || find "$place" -depth -type d -exec rmdir {} + 2>/dev/null || return 1
  done
  [[ -e $dir/controllers ]] || return 0
  # One that another has handed on by now stays: the kernel says that it is busy.
  while read -r controller; do echo "-$controller" >/sys/fs/cgroup/cgroup.subtree_control || true; done <"$dir/controllers" 2>/dev/null
  rm -f "$dir/controllers"
}

# ---- Kubernetes' programs ----

launch_control_plane() {
  local pki=$dir/pki
  pid_of etcd >/dev/null || spawn etcd "$bin/etcd" --data-dir "$dir/etcd" --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync # a test does not cut the power of the machine
  pid_of apiserver >/dev/null || spawn apiserver "$bin/kube-apiserver" --etcd-servers http://127.0.0.1:2379 \
    --secure-port 6443 --advertise-address "$address" --service-cluster-ip-range "$services" \
    --tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" --client-ca-file "$pki/ca.crt" \
    --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --allow-privileged \
    --service-account-issuer https://kubernetes.default.svc --service-account-key-file "$pki/sa.pub" \
    --service-account-signing-key-file "$pki/sa.key" \
    --kubelet-client-certificate "$pki/admin.crt" --kubelet-client-key "$pki/admin.key" \
    --kubelet-certificate-authority "$pki/ca.crt" --kubelet-preferred-address-types InternalIP \
    --requestheader-client-ca-file "$pki/front-ca.crt" --requestheader-allowed-names front \
    --requestheader-username-headers X-Remote-User --requestheader-group-headers X-Remote-Group \
    --requestheader-extra-headers-prefix X-Remote-Extra- \
    --proxy-client-cert-file "$pki/front.crt" --proxy-client-key-file "$pki/front.key" --profiling=false
}
launch_controllers() {
  local pki=$dir/pki
  pid_of controllers >/dev/null || spawn controllers "$bin/kube-controller-manager" --kubeconfig "$pki/controllers.conf" \
    --leader-elect=false --use-service-account-credentials --service-account-private-key-file "$pki/sa.key" \
    --root-ca-file "$pki/ca.crt" --cluster-cidr "$pods" --flex-volume-plugin-dir "$dir/plugins" --bind-address 127.0.0.1 --profiling=false \
    --horizontal-pod-autoscaler-sync-period 5s # in place of 15 s
  pid_of scheduler >/dev/null || spawn scheduler "$bin/kube-scheduler" --kubeconfig "$pki/scheduler.conf" --leader-elect=false \
    --bind-address 127.0.0.1 --profiling=false
}
launch_containerd() {
  pid_of containerd >/dev/null && return
  mkdir -p "$dir/cni"
  # Each pod a link of its own with the node, no bridge: then traffic between pods of one node passes the packet filter also
  # where the kernel has no br_netfilter.
  cat >"$dir/cni/10-pods.conflist" <<END
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "dataDir": "/run/cni", "ranges": [[{"subnet": "$pods"}]],
   "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
  cat >"$dir/containerd.toml" <<END
version = 3
root = "$dir/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp", "io.containerd.nri.v1.nri"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$dir/opt"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "localhost/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "$dir/cni"
END
  spawn containerd env PATH="$bin:$PATH" "$bin/containerd" -c "$dir/containerd.toml"
}
ctr() { in_node "$bin/ctr" --namespace k8s.io "$@"; }

launch_kubelet() {
  pid_of kubelet >/dev/null && return
  : >"$dir/resolv.conf"
  cat >"$dir/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$cgroup
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
clusterDNS: ["$dns_address"]
clusterDomain: cluster.local
resolvConf: $dir/resolv.conf
podLogsDir: $dir/podlogs
volumePluginDir: $dir/plugins
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $dir/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $dir/pki/kubelet.crt
tlsPrivateKeyFile: $dir/pki/kubelet.key
# A changed Secret is in the pods within seconds, in the place of a minute and a half.
syncFrequency: 5s
# A disk that is nearly full is no reason to evict pods, nor to collect images, which come from nowhere a second time.
evictionHard: {memory.available: 100Mi}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
END
  spawn kubelet "$bin/kubelet" --kubeconfig "$dir/pki/kubelet.conf" --config "$dir/kubelet.yaml" --hostname-override node \
    --node-ip "$address"
}
launch_proxy() {
  pid_of proxy >/dev/null && return
  cat >"$dir/proxy.yaml" <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: node
clusterCIDR: $pods
clientConnection: {kubeconfig: $dir/pki/proxy.conf}
# The table of connections is bounded for the whole machine, not for a network namespace.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
END
  spawn proxy "$bin/kube-proxy" --config "$dir/proxy.yaml"
}
