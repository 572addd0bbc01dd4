# SPDX-License-Identifier: Apache-2.0
"""Shared by the benchmarks; imports none of them.

terminal     progress; parsing of arguments
vm           boots a machine and runs a benchmark's program in it
settling     waits until the kernel has removed closed namespaces
stats        percentiles, rounding                                  pure
machine      processor, kernel and versions, for the report
plot         colours and style of pictures
errors       BenchError
"""
