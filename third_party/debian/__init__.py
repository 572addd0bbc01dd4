# SPDX-License-Identifier: Apache-2.0
"""Which Debian packages images are made of, pinned, and how the pins move.

Limits: amd64 and one archive; dependencies are listed by hand in packages.in.
Why not pins in build files: a lock is moved by a command and reviewed as a
diff.
"""
