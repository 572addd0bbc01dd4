# SPDX-License-Identifier: Apache-2.0
"""The pinned Debian packages of images, and the update of the pins.

Limits: amd64 and one archive; dependencies are listed by hand in packages.in.
Why not pins in build files: a command updates a lock, and a diff shows the
change.
"""
