# SPDX-License-Identifier: Apache-2.0
"""Tools behind the image rules: trees of files to tar, cpio, erofs and OCI.

Everything is done on tars in memory: no root, no mounts, no extraction, so
owner and mode are what the rule says and not what the builder's machine allows.
What comes out depends on nothing but what goes in (fixed times, owners and
order).

Limits: regular files, directories and symbolic links, all owned by root; no
extended attributes. Why not rules_pkg: it makes tars and stops there; it knows
no shadowing between layers, no byte code, no initramfs and no file system
image.
"""
