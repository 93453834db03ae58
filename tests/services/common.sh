# shellcheck shell=bash
# What the scripts of this directory share, sourced by them: processes by name, ports that stay with a name, owners.
# They set $state (a directory for each name in it) and, for one name, $dir.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${WIREPOST_CACHE:-$HOME/.cache/wirepost}

say() { echo "${0##*/}: $*" >&2; }
die() { say "$*"; exit 1; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "$0"; exit "${1:-2}"; }

# ---- processes: a pid alone proves nothing after a reboot or a wrap-around, pid and start time together do ----

started_at() { local stat; stat=$(cat "/proc/$1/stat" 2>/dev/null) && stat=${stat##*) } && set -- $stat && echo "${20}"; }
remember() { echo "$2 $(started_at "$2")" >"$dir/$1.pid"; }
pid_of() { # pid_of PROGRAM|owner: its pid if that very process still lives
  local pid start
  read -r pid start 2>/dev/null <"$dir/$1.pid" || return 1
  [[ -n $start && $(started_at "$pid") == "$start" ]] && ! gone "$pid" && echo "$pid"
}
gone() { local stat; stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0; stat=${stat##*) }; [[ $stat == [ZX]* ]]; }
# Returns when all its threads stand still: on a busy machine a broker answered a second after `kill -STOP` had returned.
freeze() { # freeze PID
  local end=$((SECONDS + 10))
  kill -STOP "$1" || return 1
  while grep -qs '^State:[[:space:]]*[RSD]' "/proc/$1"/task/*/status; do
    ((SECONDS < end)) || die "pid $1 does not stand still after SIGSTOP"
    sleep 0.05
  done
}
wait_gone() { # wait_gone PID SECONDS
  local end=$((SECONDS + $2))
  until gone "$1"; do ((SECONDS < end)) || return 1; sleep 0.1; done
}
open_port() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# ---- ports: some in a row, kept for the life of the directory so that what is restarted is found where it was ----

# choose_ports FROM TO COUNT: below the ephemeral range, so that no outgoing connection can sit on them.
choose_ports() {
  [[ -s $dir/ports ]] && return
  local base port used
  (
    flock 8
    used=" $(awk 'FNR > 1 { split($2, a, ":"); print a[2] }' /proc/net/tcp /proc/net/tcp6 2>/dev/null |
      while read -r port; do echo -n "$((16#$port)) "; done) "
    used+=$(cat "$state"/*/ports 2>/dev/null | tr '\n' ' ' || true)
    for ((base = $1; base < $2; base += $3)); do
      for ((port = base; port < base + $3; port++)); do [[ $used == *" $port "* ]] && continue 2; done
      # All of them are written down: they belong to this name, in use or not.
      { echo -n " "; seq -s ' ' "$base" $((base + $3 - 1)); } >"$dir/ports"
      exit 0
    done
    die "no $3 free ports in a row from $1 to $2"
  ) 8>"$state/ports.lock"
}

# ---- owners: who asked for it, so that what a killed run left can be told and ended ----

remember_owner() { [[ -z ${WIREPOST_TEST_OWNER:-} ]] || remember owner "$WIREPOST_TEST_OWNER"; }

# each --all|--mine|--orphaned COMMAND...: COMMAND with $name and $dir of each of those.
each() {
  local filter=$1
  shift
  shopt -s nullglob
  for dir in "$state"/*/; do
    dir=${dir%/} name=${dir##*/}
    [[ -e $dir/engine ]] || continue
    case $filter in
      --mine) [[ -n ${WIREPOST_TEST_OWNER:-} && $(pid_of owner) == "$WIREPOST_TEST_OWNER" ]] || continue ;;
      --orphaned) [[ -e $dir/owner.pid ]] && ! pid_of owner >/dev/null || continue ;;
    esac
    # shellcheck source=/dev/null
    source "$dir/engine"
    "$@" || true
  done
}
