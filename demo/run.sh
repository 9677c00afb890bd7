#!/usr/bin/env bash
# The whole way of a module, on real parts and without root: a registry, wasmferry, an Envoy, and requests
# that flow while the filter is replaced. `make demo` builds wasmferry and gets the others first.
#
# Everything happens in a temporary folder and on loopback, and is gone afterwards.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
wasmferry=${WASMFERRY:-target/release/wasmferry}
modules=fixtures/modules
tools=.tools/bin

work=$(mktemp -d "${TMPDIR:-/tmp}/wasmferry-demo.XXXXXX")
children=()

finish() {
    local code=$?
    trap - EXIT
    [ ${#children[@]} = 0 ] || kill "${children[@]}" 2>/dev/null || true
    wait
    if [ $code != 0 ]; then
        for log in "$work"/*.log; do
            printf '\n== the end of %s\n' "${log##*/}"
            tail -n 20 "$log"
        done >&2
        printf '\nThe demo failed.\n' >&2
    fi
    rm -rf "$work"
    exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM

die() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# step TEXT: what happens next. show TEXT: what came of it.
steps=0
step() { steps=$((steps + 1)); printf '\n%d. %s\n' "$steps" "$*"; }
show() { printf '   %s\n' "$@"; }

# start NAME COMMAND...: a part that runs until the end of the demo, its output in NAME.log.
start() {
    local name=$1
    shift
    "$@" >"$work/$name.log" 2>&1 &
    children+=($!)
}

# await WHAT COMMAND...: until the command succeeds, at most 30 s, and while all parts run.
await() {
    local what=$1 deadline=$((SECONDS + 30)) child
    shift
    until "$@" >/dev/null 2>&1; do
        for child in "${children[@]}"; do
            kill -0 "$child" 2>/dev/null || die "a part ended while waiting for $what"
        done
        [ $SECONDS -lt $deadline ] || die "waited 30 s in vain for $what"
        sleep 0.05
    done
}

# A port that nothing listens on, for an address that two programs must know beforehand.
free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# plugin VERSION: tells wasmferry to serve the filter in this version. In one step, as an editor or a
# ConfigMap does it: nobody reads half a file.
plugin() {
    cat >"$work/plugin.yaml" <<YAML
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata:
  name: add-header
spec:
  url: oci://$registry/demo/add-header:$1
YAML
    mv "$work/plugin.yaml" "$work/plugins/add-header.yaml"
}

# push VERSION
push() {
    local digest
    digest=$("$wasmferry" push "$modules/add-header-$1.wasm" "oci://$registry/demo/add-header:$1" 2>>"$work/push.log") ||
        die "wasmferry could not push $1"
    show "$ wasmferry push $modules/add-header-$1.wasm oci://$registry/demo/add-header:$1" "$digest"
}

# ask: one request; prints its status and what the filter put into the header, `-` for nothing.
ask() {
    curl --silent --show-error --max-time 10 --output /dev/null --dump-header - "http://$listener/" 2>>"$work/curl.log" |
        tr -d '\r' |
        awk 'NR == 1 { status = $2 } tolower($1) == "x-wasmferry-demo:" { version = $2 }
             END { print (status ? status : "-"), (version ? version : "-") }'
}

# ask_until_told: requests, one after another, until the file `stop` is there. One line each.
ask_until_told() {
    until [ -e "$work/stop" ]; do
        ask || echo "- -"
    done >>"$work/answers"
}
answers() { grep --count --line-regexp --fixed-strings "$1" "$work/answers" || true; }
answered() { [ "$(answers "$1")" -ge "$2" ]; }

for needed in "$wasmferry" "$tools/envoy" "$tools/docker-registry"; do
    [ -x "$needed" ] || die "$needed is missing: run \`make demo\`"
done
for needed in curl python3; do
    command -v "$needed" >/dev/null || die "$needed is missing"
done

step "A registry, as people run one"
cat >"$work/registry.yml" <<YAML
version: 0.1
log: {level: info, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: "127.0.0.1:0", secret: demo}
YAML
start registry "$tools/docker-registry" serve "$work/registry.yml"
await "the registry" grep -q 'listening on' "$work/registry.log"
registry=$(sed -n 's/.*listening on \([0-9.:]*\).*/\1/p' "$work/registry.log")
show "docker-registry listens on $registry"

step "Version one of a filter is published"
push v1

step "wasmferry, standalone: no control plane, a folder with one WasmPlugin"
mkdir "$work/plugins"
plugin v1
show "$ cat plugins/add-header.yaml"
sed 's/^/     /' "$work/plugins/add-header.yaml"
cat >"$work/wasmferry.yaml" <<YAML
version: 1
listeners:
  - address: unix:$work/xds.sock
    mode: "0600"
upstream:
  directory: $work/plugins
cache:
  directory: $work/cache
health: {listen: "127.0.0.1:$(free_port)"}
YAML
start wasmferry "$wasmferry" run --config "$work/wasmferry.yaml"
await "wasmferry" "$wasmferry" health --config "$work/wasmferry.yaml"
show "$ wasmferry run --config wasmferry.yaml" "listens on xds.sock"

step "Envoy, with a listener whose filter \`default.add-header\` comes by xDS from wasmferry"
sed "s|@SOCKET@|$work/xds.sock|" demo/envoy.yaml >"$work/envoy.yaml"
start envoy "$tools/envoy" --config-path "$work/envoy.yaml" --admin-address-path "$work/envoy.admin" \
    --concurrency 2 --disable-hot-restart --log-level warning
await "Envoy" test -s "$work/envoy.admin"
admin=$(cat "$work/envoy.admin")
await "a live Envoy, which waits for its filter" curl --silent --fail "http://$admin/ready"
listener=$(curl --silent "http://$admin/listeners" | sed -n 's/^demo:://p')
show "Envoy is live and listens on $listener"

step "A request passes the filter, which adds a header to the answer"
curl --silent --show-error --include --max-time 10 "http://$listener/" | tr -d '\r' >"$work/answer"
show "$ curl -i http://$listener/"
sed 's/^/   /' "$work/answer"
grep -qi '^x-wasmferry-demo: v1$' "$work/answer" || die "the answer has no header \`x-wasmferry-demo: v1\`"

step "Version two is published, and replaces version one while requests flow"
push v2
touch "$work/answers"
ask_until_told &
asking=$!
children+=("$asking")
await "50 requests" answered "200 v1" 50
plugin v2
show "plugins/add-header.yaml now says $(sed -n 's/ *url: //p' "$work/plugins/add-header.yaml")"
await "50 requests that version two answered" answered "200 v2" 50
touch "$work/stop"
wait "$asking"
unset 'children[-1]'

step "What the requests saw"
total=$(wc -l <"$work/answers") first=$(answers "200 v1") second=$(answers "200 v2")
failed=$((total - first - second))
show "$total requests: $first passed version one, $second version two, $failed failed"
[ "$failed" = 0 ] || die "$failed requests failed: $(grep --invert-match --line-regexp '200 v[12]' "$work/answers" | sort | uniq -c | tr '\n' ';')"
