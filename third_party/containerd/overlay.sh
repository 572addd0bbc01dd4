#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# overlay SOURCES...: lay out ./gopath, a GOPATH in which go-cni is ours, and
# ./gopath/env; source that before compiling.
#
# The first of two GOPATH entries wins, so containerd's sources, which Debian
# packages, stay unmodified. Generated code has its own import path.
set -euo pipefail

root=$PWD/gopath
package=$root/src/github.com/containerd/go-cni
spec=$root/src/metropolis/node/core/network/workloads/spec
mkdir -p "$package" "$spec" "$root/cache"
for source; do
  case $source in
    *.pb.go) cp "$source" "$spec/" ;;
    *.go) cp "$source" "$package/" ;;
    *) echo "overlay: $source is no Go file" >&2 && exit 1 ;;
  esac
done

# Modules off: everything is on disk, nothing is fetched. No cgo: the programs
# are static and do not depend on the image's libc. -trimpath, no build id: the
# same bytes wherever they are built. GOGC: compilers end before they run out of
# memory, so they need not look for garbage as often; a sixth of the time. No
# DWARF: programs are stripped, and stack traces do without; a twelfth.
cat >"$root/env" <<END
export GO111MODULE=off GOPATH=$root:/usr/share/gocode GOCACHE=$root/cache
export GOFLAGS='-trimpath -buildvcs=false -gcflags=all=-dwarf=false'
export GOTOOLCHAIN=local CGO_ENABLED=0
export GOPROXY=off HOME=$root GOGC=800
END
