# SPDX-License-Identifier: Apache-2.0
"""cniproxy: go-cni's interface, in Python, to the workload network service.

For Python programs that start containers and would otherwise exec CNI plugins:

    from metropolis.node.containerd.cniproxy import cni, options

    with cni.new(options.with_min_network_count(2)) as client:
        client.load(options.with_lo_network, options.with_default_conf)
        result = client.setup(sandbox_id, "/run/netns/blue")
        address = result.interfaces["eth0"].ip_configs[0].ip

There is one network, the service's; no CNI configuration is read and no plugin
is executed. README.md maps go-cni's names to these, and lists what is absent
and why. shim/ has the exec shim that stock runtimes use.

`cni` is the client, `options` what `new` and `load` take, `namespace` what the
calls take, `result` what they return, `errors` what they raise.

Why not the gRPC stubs: they are fine. This is for code written against go-cni,
and for its result, which containerd stores as JSON.
"""
