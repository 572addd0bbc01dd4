# SPDX-License-Identifier: Apache-2.0
"""The workload network API over gRPC.

    wire     messages to values of the model, and back      pure
    server   the calls, on a unix socket; errors to status codes
    serve    a program that serves it alone, for tests and measurements

The API itself is in ../spec, since its path is part of the contract.
"""
