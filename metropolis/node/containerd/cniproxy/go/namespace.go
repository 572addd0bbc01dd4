// SPDX-License-Identifier: Apache-2.0

package cni

// The options of Setup and Remove: each is written straight into the request.

import (
	"fmt"
	"maps"
	"net"
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

// WithLabels adds metadata of the pod: its name, namespace, UID. As in CNI_ARGS,
// IP (addresses, with commas between) and MAC ask for what they name, unless a
// capability does.
func WithLabels(labels map[string]string) NamespaceOpts {
	return func(request *pb.AttachRequest) error {
		if request.Labels == nil {
			request.Labels = map[string]string{}
		}
		maps.Copy(request.Labels, clean(labels))
		if text := labels["IP"]; text != "" {
			packed, err := packIPs("label IP", strings.Split(text, ","))
			if err != nil {
				return err
			}
			if len(request.RequestedIp) == 0 {
				request.RequestedIp = packed
			}
		}
		if text := labels["MAC"]; text != "" {
			packed, err := packMAC("label MAC", text)
			if err != nil {
				return err
			}
			if len(request.RequestedMac) == 0 {
				request.RequestedMac = packed
			}
		}
		return nil
	}
}

// WithArgs adds one label.
func WithArgs(key, value string) NamespaceOpts {
	return WithLabels(map[string]string{key: value})
}

// WithCapability asks for ips ([]string) or mac (string), or adds the pod's
// annotations; nothing else is known by name.
func WithCapability(name string, capability any) NamespaceOpts {
	return func(request *pb.AttachRequest) (err error) {
		switch value := capability.(type) {
		case []string:
			if name == "ips" {
				request.RequestedIp, err = packIPs("capability ips", value)
				return err
			}
		case string:
			if name == "mac" {
				request.RequestedMac, err = packMAC("capability mac", value)
				return err
			}
		case map[string]string:
			if name == podAnnotations {
				request.Annotations = clean(value)
				return nil
			}
		}
		return fmt.Errorf("capability %q: %T is not supported: %w", name, capability, ErrInvalidConfig)
	}
}

// packIPs packs addresses; a prefix length may come with each, and is ignored:
// workloads get host routes.
func packIPs(source string, texts []string) ([][]byte, error) {
	var packed [][]byte
	for _, text := range texts {
		ip := text
		if strings.Contains(text, "/") {
			parsed, _, err := net.ParseCIDR(text)
			if err != nil {
				return nil, fmt.Errorf("%s: %q is no IP address: %w", source, text, ErrInvalidConfig)
			}
			ip = parsed.String()
		}
		one, err := packIP(ip)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", source, err)
		}
		packed = append(packed, one)
	}
	return packed, nil
}

func packMAC(source, text string) ([]byte, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("%s: %q: six hex pairs are expected: %w", source, text, ErrInvalidConfig)
	}
	return mac, nil
}

// WithMTU sets the MTU of both ends, bytes; 0: the node's. Not in go-cni, whose
// users write it into a configuration.
func WithMTU(mtu uint32) NamespaceOpts {
	return func(request *pb.AttachRequest) error {
		request.Mtu = mtu
		return nil
	}
}

// Route is a route in the namespace. GW: empty, or the first hop of its family,
// since nothing else is reachable.
type Route struct {
	Dst string
	GW  string
}

// WithRoutes adds routes in the namespace. Not in go-cni: see WithMTU.
func WithRoutes(routes ...Route) NamespaceOpts {
	return func(request *pb.AttachRequest) error {
		for _, one := range routes {
			_, dst, err := net.ParseCIDR(one.Dst)
			if err != nil {
				return fmt.Errorf("route %+v: a prefix length is expected: %w", one, ErrInvalidConfig)
			}
			bits, _ := dst.Mask.Size()
			made := &pb.Route{Destination: dst.IP, PrefixLength: uint32(bits)}
			if one.GW != "" {
				if made.Gateway, err = packIP(one.GW); err != nil {
					return fmt.Errorf("route %+v: %w", one, err)
				}
			}
			request.Routes = append(request.Routes, made)
		}
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

// WithCapabilityBandWidth adds limits, which the service judges.
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
