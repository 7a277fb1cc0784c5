#!/usr/bin/env bash
# `make run`: shows a cluster at work on this machine. It may be run again and again.
# Usage: run.sh NAVARCH-BINARY   (environment: NAVARCH_DATA_DIR, NAVARCH_LISTEN, KUBECONFIG)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
navarch=$(readlink -f "${1:?usage: run.sh NAVARCH-BINARY}")
data=${NAVARCH_DATA_DIR:-/var/lib/navarch}

say() { printf '\n== %s\n' "$*"; }
if [ "$(id -u)" != 0 ]; then
  echo "error: this example runs containers, which needs root; run: sudo make run" >&2
  exit 1
fi

say "start the cluster"
"$navarch" up --data-dir "$data" ${NAVARCH_LISTEN:+--listen "$NAVARCH_LISTEN"}
[ "$data" = /var/lib/navarch ] || folder=" --data-dir $data"

if ! kubectl=$(command -v kubectl); then
  say "fetch kubectl"
  kubectl=$("$here/../../.ci/kube-tools" 36)/kubectl
fi
k() { KUBECONFIG=$data/admin.kubeconfig "$kubectl" "$@"; }

say "an image from this program's own web server: nothing is pulled"
"$navarch" image import-self navarch.local/hello:1 --data-dir "$data"

say "deploy examples/hello"
k apply -f "$here/hello.yaml"
k rollout status deployment/hello --timeout=60s
k get pods -l app=hello -o wide

say "call the Service at its cluster IP"
ip=$(k get service hello -o 'jsonpath={.spec.clusterIP}')
# bash speaks enough HTTP for this; nothing needs to be installed
call() {
  (
    exec 3<>"/dev/tcp/$ip/80"
    printf 'GET / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n' >&3
    sed '1,/^\r$/d' <&3
  )
}
for _ in 1 2 3; do call; done

say "kill a container; the cluster heals it"
pod=$(k get pods -l app=hello -o 'jsonpath={.items[0].metadata.name}')
uid=$(k get pod "$pod" -o 'jsonpath={.metadata.uid}')
count() { k get pod "$pod" -o 'jsonpath={.status.containerStatuses[0].restartCount}'; }
before=$(count)
# the container's process is the one of this pod that runs `web`
for process in /proc/[0-9]*; do
  if grep -q -e "$uid" -e "${uid//-/_}" "$process/cgroup" 2>/dev/null &&
    tr '\0' ' ' <"$process/cmdline" 2>/dev/null | grep -q ' web '; then
    echo "kill -9 ${process#/proc/}   ($pod)"
    kill -9 "${process#/proc/}"
  fi
done
k wait pod "$pod" --timeout=60s --for="jsonpath={.status.containerStatuses[0].restartCount}=$((before + 1))"
k wait pod "$pod" --timeout=60s --for=condition=Ready
k get pods -l app=hello
call

cat <<EOF

== it works. Next:
  export KUBECONFIG=$data/admin.kubeconfig
  kubectl get pods -o wide               (kubectl here: $kubectl)
  kubectl scale deployment hello --replicas 5
  kubectl edit configmap hello           the page follows
  kubectl logs -f deployment/hello
  $navarch image import${folder:-} my-image.tar   your own image: \`docker save\`, or an OCI archive
  $navarch down${folder:-}    stop the server; containers keep running
  $navarch reset${folder:-}   remove everything
EOF
