# SPDX-License-Identifier: Apache-2.0
"""What an editor needs: `./bazelw run //build:ide` makes it.

    .venv/lib/python3.14/site-packages   links to the pinned packages
    .venv/bin/python                     the devroot's Python, with these
    .venv/bin/{mypy,pytest,ruff}         the pinned tools
    PATH/x_pb2.py, .pyi, x_pb2_grpc...   beside each .proto, and in third_party

All of it is ignored by git, and made again by the next run, which is needed
after a change of a .proto or of the pinned packages and after `clean-devroot`.

Pylance, pyright and PyCharm read .venv like a virtual environment; the settings
in .vscode and pyproject.toml name it. It is none: the host may have another
Python, so bin/python is a script that enters the devroot. Why generated modules
are in the tree and not in .venv: the packages around them have an __init__.py,
so Python looks for their modules nowhere else. Bazel does not see them there.
"""
