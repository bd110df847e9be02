#!/usr/bin/env bash
# net.sh up [RATE] | rate RATE|none | rate-both RATE|none | down     two hosts on one machine with a slow link between them
#
# Namespace floe-client (10.123.0.1) <-> namespace floe-registry (10.123.0.2), a veth pair, and a token bucket on what the
# registry sends (RATE as tc writes it: 100mbit). What the client sends is shaped by
# rate-both only. Nothing of it is visible on the
# host's own network: ports and addresses cannot clash with what runs there. Root; needs iproute2.
set -euo pipefail
client=floe-client registry=floe-registry

rate() { # rate RATE [NAMESPACE]   whose sending it shapes: the registry's
  local who=${2:-$registry}
  ip netns exec "$who" tc qdisc del dev veth0 root 2>/dev/null || true
  # The burst holds 20 ms at 100 Mbit/s; the queue is short, as a switch's is.
  [ "$1" = none ] || ip netns exec "$who" tc qdisc add dev veth0 root tbf rate "$1" burst 256kb latency 50ms
}

case ${1:-} in
  up)
    ip netns add $client
    ip netns add $registry
    ip -n $client link add veth0 type veth peer name veth0 netns $registry
    ip -n $client addr add 10.123.0.1/24 dev veth0
    ip -n $registry addr add 10.123.0.2/24 dev veth0
    for ns in $client $registry; do ip -n $ns link set veth0 up; ip -n $ns link set lo up; done
    rate "${2:-none}" ;;
  rate) rate "$2" ;;
  rate-both) rate "$2"; rate "$2" $client ;;
  down) for ns in $client $registry; do ip netns del $ns 2>/dev/null || true; done ;;
  *) sed -n 2p "$0" >&2; exit 2 ;;
esac
