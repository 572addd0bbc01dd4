# SPDX-License-Identifier: Apache-2.0
"""A test that documents are true: their commands, snippets, labels and paths.

    Markdown, docstrings, comments
        | blocks, lines, inline code               -> extract
    statements and snippets
        | by the first word, or the form           -> classify
    checked by files and sources alone             -> labels, options, names
    run: node core --check on configurations,
         and the reader of network policies           docs_test
    run on a node: //metropolis/test/e2e:documents_test
    excluded, with a reason                        -> classify.EXCLUDED

All is extracted mechanically. What has no class is a finding, with what to add,
so a new command cannot be printed unchecked. docs_test prints the counts.
help_test runs every program's --help.

Limits: that a command exists and has its options does not show that it does
what the text says. Options of programs of others are only checked on a node, by
running them; values of options nowhere.
"""
