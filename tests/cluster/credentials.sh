# shellcheck shell=bash
# Who is who in the cluster, sourced by `cluster`: authorities, certificates, kubeconfigs, made once for a name in $dir/pki.

make_credentials() {
  local who
  [[ -e $dir/pki/done ]] && return
  mkdir -p "$dir/pki"
  (
    cd "$dir/pki"
    exec 2>openssl.log
    umask 077
    key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
    authority() { # authority NAME
      openssl req -x509 "${key[@]}" -keyout "$1.key" -out "$1.crt" -days 800 -subj "/CN=wirepost test $1" \
        -addext keyUsage=critical,keyCertSign,digitalSignature
    }
    certificate() { # certificate AUTHORITY NAME SUBJECT [ALTERNATIVE_NAMES]
      openssl req "${key[@]}" -keyout "$2.key" -out "$2.csr" -subj "$3"
      openssl x509 -req -in "$2.csr" -CA "$1.crt" -CAkey "$1.key" -CAcreateserial -days 800 -out "$2.crt" -extfile <(
        printf '%s\n' basicConstraints=critical,CA:FALSE extendedKeyUsage=serverAuth,clientAuth ${4:+"subjectAltName=$4"}
      )
    }
    authority ca
    certificate ca apiserver /CN=kube-apiserver "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:$address,IP:$kubernetes_address"
    certificate ca admin /O=system:masters/CN=admin
    certificate ca kubelet /O=system:nodes/CN=system:node:node "DNS:node,IP:$address"
    certificate ca controllers /CN=system:kube-controller-manager
    certificate ca scheduler /CN=system:kube-scheduler
    certificate ca proxy /CN=system:kube-proxy
    # Of the edges, for TLS at a port of the node.
    certificate ca edge /CN=wirepost "DNS:localhost,IP:127.0.0.1,IP:$address"
    # Of the API server, when it passes requests on to an API that is served by a pod.
    authority front-ca
    certificate front-ca front /CN=front
    # Signs the tokens of service accounts.
    openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out sa.key
    openssl pkey -in sa.key -pubout -out sa.pub
    for who in kubelet controllers scheduler proxy; do kubeconfig "$who" https://127.0.0.1:6443 >"$who.conf"; done
    kubeconfig admin "https://$address:6443" >"$dir/kubeconfig"
    touch done
  ) || die "no certificates: $(tail -n 3 "$dir/pki/openssl.log")"
}

kubeconfig() { # kubeconfig WHO SERVER: everything in the one file
  encoded() { base64 -w 0 <"$1"; }
  cat <<END
apiVersion: v1
kind: Config
current-context: wirepost-$name
contexts: [{name: wirepost-$name, context: {cluster: wirepost-$name, user: $1}}]
clusters: [{name: wirepost-$name, cluster: {server: "$2", certificate-authority-data: $(encoded ca.crt)}}]
users: [{name: $1, user: {client-certificate-data: $(encoded "$1.crt"), client-key-data: $(encoded "$1.key")}}]
END
}
