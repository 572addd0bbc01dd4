// SPDX-License-Identifier: Apache-2.0

package cni

// The options of Setup and Remove: each is written straight into the request.

import (
	"fmt"
	"strings"

	pb "metropolis/node/core/network/workloads/spec"
)

// podAnnotations is the capability under which CRI passes a pod's annotations.
const podAnnotations = "io.kubernetes.cri.pod-annotations"

// NamespaceOpts is an option of Setup and Remove.
type NamespaceOpts func(request *pb.AttachRequest) error

// PortMapping is a port of the host that leads to one of the container.
// Protocol is tcp, udp or sctp in any case, or empty for tcp. HostIP is an
// address of the host; empty, all of both families; 0.0.0.0 or ::, all of one.
// HostPort 0: the container only declares the port, and none of the host leads
// to it.
type PortMapping struct {
	HostPort      int32
	ContainerPort int32
	Protocol      string
	HostIP        string
}

// BandWidth has rates in bits per second and bursts in bits; 0: no limit.
type BandWidth struct {
	IngressRate  uint64
	IngressBurst uint64
	EgressRate   uint64
	EgressBurst  uint64
}

// DNS has the settings of the pod's resolv.conf(5).
type DNS struct {
	Servers  []string
	Searches []string
	Options  []string
}

// WithLabels adds metadata of the pod: its name, namespace, UID.
func WithLabels(labels map[string]string) NamespaceOpts {
	return func(request *pb.AttachRequest) error {
		request.Labels = clean(labels)
		return nil
	}
}

// WithCapability adds the pod's annotations; nothing else is known by name.
func WithCapability(name string, capability any) NamespaceOpts {
	return func(request *pb.AttachRequest) error {
		annotations, ok := capability.(map[string]string)
		if name != podAnnotations || !ok {
			return fmt.Errorf("capability %q: %T is not supported: %w", name, capability, ErrInvalidConfig)
		}
		request.Annotations = clean(annotations)
		return nil
	}
}

// WithCapabilityPortMap adds port mappings. The service judges what is not
// wrong in itself: whether a port is free, and an address is the host's.
func WithCapabilityPortMap(mappings []PortMapping) NamespaceOpts {
	return func(request *pb.AttachRequest) error {
		for i, mapping := range mappings {
			one, err := portMapping(mapping)
			if err != nil {
				return fmt.Errorf("port mapping %d, %+v: %w", i, mapping, err)
			}
			if one.HostPort != 0 {
				request.PortMapping = append(request.PortMapping, one)
			}
		}
		return nil
	}
}

func portMapping(mapping PortMapping) (*pb.PortMapping, error) {
	one := &pb.PortMapping{Protocol: strings.ToLower(mapping.Protocol)}
	switch one.Protocol {
	case "", "tcp", "udp", "sctp":
	default:
		return nil, fmt.Errorf("protocol %q: tcp, udp or sctp is expected: %w", mapping.Protocol, ErrInvalidConfig)
	}
	if port := mapping.HostPort; port < 0 || port > 65535 {
		return nil, fmt.Errorf("host port %d: 1 to 65535 is expected: %w", port, ErrInvalidConfig)
	}
	if port := mapping.ContainerPort; port < 0 || port > 65535 || (port == 0 && mapping.HostPort != 0) {
		return nil, fmt.Errorf("container port %d: 1 to 65535 is expected: %w", port, ErrInvalidConfig)
	}
	one.HostPort, one.ContainerPort = uint32(mapping.HostPort), uint32(mapping.ContainerPort)
	if mapping.HostIP != "" {
		packed, err := packIP(mapping.HostIP)
		if err != nil {
			return nil, fmt.Errorf("host IP: %w", err)
		}
		one.HostIp = packed
	}
	return one, nil
}

// WithCapabilityBandWidth adds limits.
func WithCapabilityBandWidth(limits BandWidth) NamespaceOpts {
	return func(request *pb.AttachRequest) error {
		request.Bandwidth = &pb.Bandwidth{
			IngressRate:  limits.IngressRate,
			IngressBurst: limits.IngressBurst,
			EgressRate:   limits.EgressRate,
			EgressBurst:  limits.EgressBurst,
		}
		return nil
	}
}

// WithCapabilityDNS adds resolver settings, which the result repeats.
func WithCapabilityDNS(dns DNS) NamespaceOpts {
	return func(request *pb.AttachRequest) error {
		request.Dns = &pb.DNS{
			Servers: cleanAll(dns.Servers), Searches: cleanAll(dns.Searches),
			Options: cleanAll(dns.Options),
		}
		return nil
	}
}

// WithCapabilityCgroupPath adds the path of the pod's cgroup.
func WithCapabilityCgroupPath(path string) NamespaceOpts {
	return func(request *pb.AttachRequest) error {
		request.CgroupPath = strings.ToValidUTF8(path, "\uFFFD")
		return nil
	}
}

func attachRequest(id string, path string, opts []NamespaceOpts) (*pb.AttachRequest, error) {
	request := &pb.AttachRequest{
		WorkloadId: id,
		Netns:      &pb.NetNSAttachment{NetnsPath: path, IfName: interfaceName},
	}
	for _, opt := range opts {
		if err := opt(request); err != nil {
			return nil, err
		}
	}
	return request, nil
}

// clean copies what protobuf accepts: a stray byte in an annotation must not
// keep a pod from its network.
func clean(values map[string]string) map[string]string {
	copied := make(map[string]string, len(values))
	for key, value := range values {
		copied[strings.ToValidUTF8(key, "\uFFFD")] = strings.ToValidUTF8(value, "\uFFFD")
	}
	return copied
}

func cleanAll(values []string) []string {
	copied := make([]string, 0, len(values))
	for _, value := range values {
		copied = append(copied, strings.ToValidUTF8(value, "\uFFFD"))
	}
	return copied
}
