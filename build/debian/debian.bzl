# SPDX-License-Identifier: Apache-2.0
"""Debian packages from a lock: `@debian//:name` is the file tree as a tar; for a
source package, upstream's tar.

    debian = use_extension("//build/debian:debian.bzl", "debian")
    debian.lock(file = "//third_party/debian:packages.lock")
    use_repo(debian, "debian")

There is one repository per package, fetched when first needed by apt's own
downloader in the apt configuration of the build root (mirror, proxy, credentials),
so no host name is in the tree and no build action downloads anything. It fetches
the pinned file of the mirror's pool and checks the pinned SHA-256: neither the age
of the build root's package lists nor the mirror's signature matters. `@debian` is a
hub of aliases.

Why not `apt-get download package=version`: it only knows the versions in its
lists, which are as old as the build root; the pool keeps a file for longer.
"""

_REFRESH = "./bazelw run //third_party/debian:update"

_BUILD = """\
filegroup(
    name = "pkg",
    srcs = ["{package}.tar"],
    visibility = ["//visibility:public"],
)
"""

def _from_repository_cache(rctx, file):
    """Links `file` from Bazel's repository cache. Returns whether it was there.

    Bazel searches it by the SHA-256 before it tries a URL. The check of the default
    path before only avoids a warning per package; with another --repository_cache,
    packages are fetched again.
    """
    cached = rctx.path("../../../cache/repos/v1/content_addressable/sha256/%s/file" %
                       rctx.attr.sha256)
    if not cached.exists:
        return False
    return rctx.download(
        url = "file:///only-in-the-repository-cache",
        output = file,
        sha256 = rctx.attr.sha256,
        allow_fail = True,
    ).success

def _mirrors(rctx):
    done = rctx.execute(["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI)"])
    mirrors = {uri: None for uri in done.stdout.splitlines() if uri}

    # Not getenv(): what was fetched stays good when the variable changes.
    given = rctx.os.environ.get("DEVROOT_MIRROR")
    if given:
        mirrors = {given: None} | mirrors
    if done.return_code or not mirrors:
        fail("apt-get indextargets names no mirror (exit %d): %s" %
             (done.return_code, done.stderr.strip()))
    return [mirror.rstrip("/") for mirror in mirrors]

def _fetch(rctx, file):
    """Downloads to `file` from the first mirror that has it; fails with all errors."""
    said = []
    for mirror in _mirrors(rctx):
        done = rctx.execute([
            "/usr/lib/apt/apt-helper",
            "-q",
            "-oAPT::Sandbox::User=",  # no other user may write here
            "-oAcquire::Retries=3",
            "download-file",
            "%s/%s" % (mirror, rctx.attr.filename),
            file,
            "SHA256:" + rctx.attr.sha256,
        ], timeout = 1800)
        if not done.return_code:
            return
        said.append(done.stderr.strip())
    fail("\n".join([
        "cannot fetch %s %s, as pinned in third_party/debian/packages.lock:" %
        (rctx.attr.package, rctx.attr.version),
    ] + said + [
        "If the mirror no longer has this version, move the pins by: " + _REFRESH,
    ]))

# The conversion of a pool's file to a tar.
_TAR = {
    ".deb": "dpkg-deb --fsys-tarfile",
    ".tar.gz": "gzip -dc",
    ".tar.xz": "xz -dc",
}

def _package_impl(rctx):
    file = "package.deb"
    if not _from_repository_cache(rctx, file):
        rctx.report_progress("apt: %s %s" % (rctx.attr.package, rctx.attr.version))
        _fetch(rctx, "fetched.deb")

        # Checks the hash a second time, and fills the repository cache.
        rctx.download(
            url = "file://%s" % rctx.path("fetched.deb"),
            output = file,
            sha256 = rctx.attr.sha256,
        )
        rctx.delete("fetched.deb")
    unpack = [how for suffix, how in _TAR.items() if rctx.attr.filename.endswith(suffix)]
    if not unpack:
        fail("%s: neither of %s" % (rctx.attr.filename, ", ".join(_TAR)))
    package = rctx.attr.package.removeprefix("src:")
    done = rctx.execute(["sh", "-c", unpack[0] + ' "$1" >"$2"', "sh", file, package + ".tar"])
    if done.return_code:
        fail("%s of %s %s: %s" %
             (unpack[0], rctx.attr.package, rctx.attr.version, done.stderr.strip()))
    rctx.delete(file)
    rctx.file("BUILD.bazel", _BUILD.format(package = package))

_package = repository_rule(
    implementation = _package_impl,
    doc = "One package of the lock.",
    attrs = {
        "package": attr.string(mandatory = True),
        "version": attr.string(mandatory = True),
        "filename": attr.string(mandatory = True, doc = "Path below a mirror's root."),
        "sha256": attr.string(mandatory = True),
    },
)

def _hub_impl(rctx):
    lines = ['package(default_visibility = ["//visibility:public"])']
    for name, repository in rctx.attr.packages.items():
        lines.append('alias(name = "%s", actual = "@%s//:pkg")' % (name, repository))
    rctx.file("BUILD.bazel", "\n".join(lines) + "\n")

_hub = repository_rule(
    implementation = _hub_impl,
    doc = "Aliases of the packages of the lock.",
    attrs = {"packages": attr.string_dict(doc = "Label to repository.")},
)

def _debian_impl(mctx):
    packages = {}
    for module in mctx.modules:
        for lock in module.tags.lock:
            for name, pin in json.decode(mctx.read(lock.file))["packages"].items():
                # A repository's name allows fewer characters than a package's.
                packages[name] = "debian__" + name.replace("+", "p")
                _package(
                    name = packages[name],
                    package = pin["package"],
                    version = pin["version"],
                    filename = pin["filename"],
                    sha256 = pin["sha256"],
                )
    _hub(name = "debian", packages = packages)

debian = module_extension(
    implementation = _debian_impl,
    doc = "Makes @debian of a lock.",
    tag_classes = {"lock": tag_class(attrs = {"file": attr.label(mandatory = True)})},
)
