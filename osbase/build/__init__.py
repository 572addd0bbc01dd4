# SPDX-License-Identifier: Apache-2.0
"""Tools behind the image rules: trees of files to tar, cpio, erofs and OCI.

The tools work on tars in memory, without root, mounts or extraction. So the
rule sets owner and mode, whatever the builder's machine allows. The output
depends on the input only (times, owners and order are fixed).

Limits: regular files, directories and symbolic links, all owned by root; no
extended attributes. Why not rules_pkg: it only makes tars. It has no shadowing
between layers, no byte code, no initramfs and no file system image.
"""
